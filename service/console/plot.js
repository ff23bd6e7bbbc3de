// The plot of confidences, with the threshold to drag.

import { change, proposed } from "./draft.js";
import { state } from "./edge.js";
import { $, draw, set } from "./elements.js";
import { short } from "./words.js";

const PLOT = { left: 8, right: 8, top: 26, bottom: 24 };

let grabbedAt = 0;

const range = () => [
  Math.min(state.histogram.low, state.policy.threshold), // of an unbounded score it may lie beside the data
  Math.max(state.histogram.high, state.policy.threshold),
];

function scale() {
  const width = $("plot").clientWidth || 600;
  const height = $("plot").clientHeight || 240;
  const [low, high] = range();
  const inner = width - PLOT.left - PLOT.right;
  return {
    width,
    height,
    x: (value) => PLOT.left + (inner * (Math.min(Math.max(value, low), high) - low)) / (high - low),
    value: (x) => low + ((high - low) * Math.min(Math.max(x - PLOT.left, 0), inner)) / inner,
    bottom: height - PLOT.bottom,
  };
}

export function showPlot() {
  const { width, height, x, bottom } = scale();
  const { recent, calibration } = state.histogram;
  const [low, high] = range();
  const total = (counts) => counts.reduce((sum, count) => sum + count, 0);
  const roots = (counts) => counts.map((count) => Math.sqrt(count / Math.max(total(counts), 1)));
  const [seen, expected] = [roots(recent), roots(calibration)];
  const y = (root) => bottom - ((bottom - PLOT.top) * root) / Math.max(...seen, ...expected, 1e-9);
  const binAt = (bin) => x(state.histogram.low + ((state.histogram.high - state.histogram.low) * bin) / recent.length);
  const step = binAt(1) - binAt(0);
  const threshold = proposed("deferral") === "on" ? proposed("threshold") : low;

  set($("plot"), { viewBox: `0 0 ${width} ${height}` });
  $("bars").replaceChildren(
    ...seen.flatMap((root, bin) => {
      const [left, right] = [binAt(bin) + 1, binAt(bin) + Math.max(step - 1, 2)];
      const parted = Math.min(Math.max(x(threshold), left), right); // the bar that holds the threshold is of both colours
      return [["below", left, parted], ["above", parted, right]]
        .filter(([, from, to]) => to > from)
        .map(([side, from, to]) => draw("rect", { x: from, y: y(root), width: to - from, height: bottom - y(root), class: side }));
    }),
  );
  const shape = expected.map((root, bin) => `${bin ? "L" : "M"}${binAt(bin)} ${y(root)}H${binAt(bin + 1)}`);
  set($("expected-shape"), { d: total(calibration) ? shape.join("") : "" });
  const ticks = [0, 0.25, 0.5, 0.75, 1].map((share) => low + (high - low) * share);
  $("axis").replaceChildren(
    draw("line", { x1: PLOT.left, x2: width - PLOT.right, y1: bottom, y2: bottom }),
    ...ticks.map((tick) => {
      const text = draw("text", { x: Math.min(Math.max(x(tick), 14), width - 14), y: height - 6 });
      text.textContent = short(tick);
      return text;
    }),
  );
  set($("line-current"), { x1: x(state.policy.threshold), x2: x(state.policy.threshold), y1: PLOT.top, y2: bottom });
  showHandle();
}

function showHandle() {
  const { width, x, bottom } = scale();
  const [low, high] = range();
  const value = proposed("threshold");
  const at = x(value);
  set($("grip"), { x: at - 22, y: 0, height: bottom });
  set($("line-draft"), { x1: at, x2: at, y1: PLOT.top, y2: bottom });
  set($("knob"), { cx: at, cy: PLOT.top });
  set($("knob-text"), { x: Math.min(Math.max(at, 24), width - 24), y: 13 }).textContent = short(value);
  set($("handle"), { "aria-valuemin": low, "aria-valuemax": high, "aria-valuenow": short(Math.min(Math.max(value, low), high)), "aria-valuetext": `threshold ${short(value)}` });
}

function moveTo(value) {
  const [low, high] = range();
  const digits = Math.max(0, 4 - Math.round(Math.log10(high - low)));
  change("threshold", Number(Math.min(Math.max(value, low), high).toFixed(digits)));
  $("threshold").value = String(proposed("threshold"));
  showPlot();
}

export function listenToHandle() {
  const handle = $("handle");
  const place = (event) => event.clientX - $("plot").getBoundingClientRect().left;
  handle.addEventListener("pointerdown", (event) => {
    if (state === null || event.button !== 0) return;
    grabbedAt = place(event) - scale().x(proposed("threshold")); // the line does not jump to the finger
    handle.setPointerCapture(event.pointerId);
    handle.focus();
    event.preventDefault();
  });
  handle.addEventListener("pointermove", (event) => {
    if (handle.hasPointerCapture(event.pointerId)) moveTo(scale().value(place(event) - grabbedAt));
  });
  handle.addEventListener("keydown", (event) => {
    if (state === null) return;
    const [low, high] = range();
    const step = (high - low) * (event.shiftKey ? 0.001 : 0.01);
    const places = {
      ArrowLeft: -step, ArrowDown: -step, ArrowRight: step, ArrowUp: step, PageDown: -10 * step, PageUp: 10 * step,
      Home: -Infinity, End: Infinity,
    };
    if (!(event.key in places)) return;
    event.preventDefault();
    moveTo(proposed("threshold") + places[event.key]);
  });
}
