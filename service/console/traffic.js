// The traffic of now, section "Now": ratios, calls saved, shares of the decisions, the trend, and drift.

import { state } from "./edge.js";
import { $, draw, make, say, set } from "./elements.js";
import { ago, FEW_ITEMS, percent, within } from "./words.js";

const TREND_MS = 5 * 60 * 1000;
const TREND_GAP_MS = 15000; // no line across what nobody has seen
const TREND_SCALES = [0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1];
const DRIFT_WORTH_TELLING = 0.15; // the alert's threshold and its number of items
const DRIFT_ITEMS = 200;
const DECISIONS = ["accepted", "deferred", "degraded", "failed"];

let trend = [];

export function showTraffic() {
  const items = DECISIONS.reduce((sum, name) => sum + state.decisions[name], 0);
  say("model", state.model);
  say("ratio", items ? percent(state.deferral_ratio) : "–");
  say("ratio-aside", items ? ofLast(items) : "no items yet");
  say("expected", percent(state.outlook.expected_deferral_ratio));
  say("accuracy", percent(state.outlook.expected_joint_accuracy));
  showSavings();
  say("queue", String(state.queue_depth));
  say("recent-items", items.toLocaleString());
  showShares(items);
  const now = Date.now();
  if (items) trend.push([now, state.deferral_ratio]);
  trend = trend.filter(([moment]) => moment > now - TREND_MS);
  showTrend(now);
  const drift = state.confidence_drift;
  $("drift").hidden = !(drift > DRIFT_WORTH_TELLING && items >= DRIFT_ITEMS);
  say("drift", `Recent confidences are unlike the calibration data (distance ${(drift ?? 0).toFixed(2)}): what is expected may not hold for this traffic.`);
}

export function forgetTrend() {
  trend = [];
}

function ofLast(items) {
  if (items >= FEW_ITEMS) return `of the last ${items.toLocaleString()} items`;
  const [low, high] = within(state.deferral_ratio, items).map((share) => (100 * share).toFixed(0));
  return `of only ${items} items: by chance anything from ${low} to ${high}\u00a0%`;
}

function showSavings() {
  const { items, calls_saved } = state.savings;
  say("saved", items ? `${calls_saved.toLocaleString()} · ${percent(calls_saved / items)}` : "–");
  say("saved-aside", `${items ? `of ${items.toLocaleString()} items` : "no items yet"} since the start, ${ago(state.uptime_s)} ago`);
}

function showShares(items) {
  const svg = draw("svg", { viewBox: "0 0 100 1", preserveAspectRatio: "none" });
  let left = 0;
  const keys = [];
  for (const name of DECISIONS) {
    const width = items ? (100 * state.decisions[name]) / items : 0;
    svg.append(draw("rect", { x: left, width, height: 1, class: name }));
    left += width;
    keys.push(make("li", `${name} ${state.decisions[name].toLocaleString()}`, { class: name }));
  }
  $("shares").replaceChildren(svg);
  set($("shares"), { "aria-label": `Recent items: ${keys.map((key) => key.textContent).join(", ")}` });
  $("shares-key").replaceChildren(...keys);
}

function showTrend(now) {
  const expected = state.outlook.expected_deferral_ratio;
  const highest = Math.max(...trend.map(([, ratio]) => ratio), expected ?? 0);
  const high = TREND_SCALES.find((scale) => scale >= highest) ?? 1;
  const y = (value) => (78 - (76 * value) / high).toFixed(1);
  const x = (moment) => (600 - (600 * (now - moment)) / TREND_MS).toFixed(1);
  const live = trend.map(([moment, ratio], place) => {
    const joined = place && moment - trend[place - 1][0] < TREND_GAP_MS;
    return `${joined ? "L" : "M"}${x(moment)} ${y(ratio)}`;
  });
  say("trend-high", `${Math.round(100 * high)}\u00a0%`);
  $("trend").replaceChildren(
    draw("path", { class: "halves", d: `M0 ${y(high)}H600M0 ${y(high / 2)}H600` }),
    ...(expected === null ? [] : [draw("path", { class: "expected", d: `M0 ${y(expected)}H600` })]),
    draw("path", { class: "live", d: live.join("") }),
  );
}
