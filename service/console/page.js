// The console: asks /console/state once a second, and /admin/v1 with the token when there is something to preview or change.
// Text from elsewhere (labels, notes, problems) goes into the page as text alone; the content security policy of this
// page lets nothing become markup.
"use strict";

const POLL_MS = 1000;
const STATE_TIMEOUT_MS = 3000;
const ADMIN_TIMEOUT_MS = 15000;
const PREVIEW_AFTER_MS = 150;
const PREVIEW_AGAIN_MS = 3000; // recent traffic moves on
const HISTORY_AGAIN_MS = 10000; // after a failure
const HISTORY_SHORT = 50;
const HISTORY_LONG = 1000;
const TREND_MS = 5 * 60 * 1000;
const TREND_GAP_MS = 15000; // no line across what nobody has seen
const DRIFT_WORTH_TELLING = 0.15; // the alert's threshold and its number of items
const DRIFT_ITEMS = 200;
const FEW_ITEMS = 200; // below, chance alone moves a ratio by more than six points
const TREND_SCALES = [0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1];
const DECISIONS = ["accepted", "deferred", "degraded", "failed"];
const FIELDS = ["threshold", "deferral", "on_remote_failure", "remote_timeout_s"];
const PLOT = { left: 8, right: 8, top: 26, bottom: 24 };
const REASONS = {
  below_threshold: "the small one was not sure enough",
  forced: "the request said so",
  deferral_off: "it was not sure enough, and deferral is off",
  remote_unavailable: "the large model cannot be reached",
  remote_timeout: "the large model did not answer in time",
  remote_bad_answer: "the large model's answer made no sense",
  breaker_open: "the large model has failed too often just now and is not asked",
  remote_limit: "the large model has too much to do",
  deadline: "there was no time left to ask the large model",
  remote_degraded: "the large model, a cascade itself, could not reach its own",
};

const $ = (id) => document.getElementById(id);
let state = null; // the last answer of /console/state
let draft = {}; // the fields that differ from the policy in force
let token = sessionStorage.getItem("gatekeeper-admin-token") || "";
let trusted = false; // the token has been accepted
let lostSince = null;
let stateNumber = 0; // of the last question, and of the one whose answer is shown: an older answer is dropped
let shownNumber = 0;
let previewNumber = 0;
let previewTimer = 0;
let previewed = null; // {fields, version}: what the table tells of
let previewedAt = 0;
let busy = false;
let historyNumber = 0;
let historyVersion = null;
let historyFailedAt = 0;
let historyLimit = HISTORY_SHORT;
let grabbedAt = 0;
let trend = [];

// Words and numbers

const percent = (value) => (value === null || value === undefined ? "unknown" : `${(100 * value).toFixed(1)}\u00a0%`);
const signed = (value) => `${value > 0 ? "+" : value < 0 ? "−" : "±"}${Math.abs(100 * value).toFixed(1)}`;
const some = (items, kind) => `${items.toLocaleString()} ${kind} items${items && items < FEW_ITEMS ? ", too few to say much" : ""}`;
const short = (value) => String(Number(value.toFixed(4)));
const clock = (moment) => moment.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });

function within(share, items) {
  // Wilson's 95 % interval: which ratios so few items may have come from.
  const z = 1.96;
  const middle = (share + (z * z) / (2 * items)) / (1 + (z * z) / items);
  const margin = (z * Math.sqrt((share * (1 - share)) / items + (z * z) / (4 * items * items))) / (1 + (z * z) / items);
  return [Math.max(middle - margin, 0), Math.min(middle + margin, 1)];
}

function ago(seconds) {
  for (const [size, name] of [[172800, "days"], [7200, "hours"], [120, "minutes"]])
    if (seconds >= size) return `${Math.floor(seconds / (size / 2))} ${name}`;
  return `${Math.max(Math.round(seconds), 1)} s`;
}

function say(id, text, kind = "") {
  const element = $(id);
  if (element.textContent !== text) element.textContent = text; // else a screen reader would say it every second
  element.className = element.className.replace(/\b(good|bad)\b/g, "").trim();
  if (kind) element.classList.add(kind);
}

function make(name, text = "", attributes = {}) {
  const element = document.createElement(name);
  element.textContent = text;
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

function draw(name, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  return set(element, attributes);
}

function set(element, attributes) {
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

// Asking the edge. Throws Lost where nothing answered, Refused where the edge said no.

class Lost extends Error {}
class Refused extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

async function ask(path, { method = "GET", body, headers = {}, timeoutMs = ADMIN_TIMEOUT_MS } = {}) {
  let response;
  try {
    response = await fetch(path, { method, body, headers, cache: "no-store", credentials: "omit", signal: AbortSignal.timeout(timeoutMs) });
  } catch (error) {
    throw new Lost(error.message);
  }
  const document_ = await response.json().catch(() => null);
  if (response.ok && document_ !== null) return document_;
  throw new Refused(response.status, document_?.detail || `the answer was ${response.status}`);
}

const asAdmin = (path, method, content, headers = {}) =>
  ask(`admin/v1/${path}`, {
    method,
    body: content === undefined ? undefined : JSON.stringify(content),
    headers: { authorization: `Bearer ${token}`, ...(content === undefined ? {} : { "content-type": "application/json" }), ...headers },
  });

// The state, once a second

async function poll() {
  try {
    await refresh();
    if (lostSince !== null) found();
    if (trusted && !document.hidden && Date.now() - previewedAt > PREVIEW_AGAIN_MS) schedulePreview();
  } catch (error) {
    if (!(error instanceof Lost || error instanceof Refused)) throw error; // a fault of this page, for its log
    lose(error);
  } finally {
    showButtons();
    setTimeout(poll, document.hidden ? 5 * POLL_MS : POLL_MS);
  }
}

async function refresh() {
  const number = ++stateNumber;
  const answer = await ask("console/state", { timeoutMs: STATE_TIMEOUT_MS });
  if (number < shownNumber) return;
  shownNumber = number;
  show(answer);
}

function lose(error) {
  lostSince ??= new Date();
  const why = error instanceof Lost ? "does not answer" : `answers with ${error.status}`;
  say("lost", `The edge ${why} since ${clock(lostSince)}. The numbers below are old; this page goes on trying.`);
  $("lost").hidden = false;
  showState("state-edge", "no answer", false);
}

function found() {
  lostSince = null;
  $("lost").hidden = true;
  if (token && !trusted) signIn(token);
  schedulePreview();
}

function show(answer) {
  const before = state;
  state = answer;
  if (before !== null && before.service_version !== state.service_version) location.reload(); // an upgrade: its page may be another
  const another = before !== null && before.gate_digest !== state.gate_digest;
  const changed = before !== null && (another || before.policy.version !== state.policy.version);
  if (another) forgetGate();
  settleDraft();
  showNow();
  showParts();
  showPlot();
  if (before === null || changed) {
    showFields();
    schedulePreview();
  }
  if (changed && !another && Object.keys(draft).length)
    say("change-message", `The policy has changed meanwhile: version ${state.policy.version} is in force. Your change is compared with that one.`);
  if (trusted && historyVersion !== state.policy.version && Date.now() - historyFailedAt > HISTORY_AGAIN_MS) showHistory();
}

function forgetGate() {
  // Another bundle: a threshold, a draft and a history belong to one gate.
  draft = {};
  previewed = null;
  trend = [];
  historyVersion = null;
  $("history").querySelector("tbody").replaceChildren();
  say("change-message", "");
  say("history-message", "");
}

function settleDraft() {
  for (const field of FIELDS) if (draft[field] === state.policy[field]) delete draft[field];
}

function showNow() {
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

function showParts() {
  const edge = state.trouble ?? (state.draining ? "stopping" : "answers");
  showState("state-edge", edge, edge === "answers");
  const lost = state.endpoints.every((one) => one.is_self);
  const broken = state.breaker_open ? "not asked: breaker open" : state.degrading ? "nearly all deferrals degrade" : null;
  const differ = state.endpoints.some((one) => one.labels_match === false) && state.foreign_labels === "refuse";
  const remote = lost ? "none: the URL leads back here" : (broken ?? (differ ? "its labels differ" : "in use"));
  showState("state-remote", remote, !lost && broken === null && !differ);
  showDegrading();
  showState("state-store", state.policy_store_up ? "up" : "down", state.policy_store_up);
  $("endpoints").replaceChildren(
    ...state.endpoints.map((one) => {
      const differing = `its labels differ: it has ${one.labels_told}, this edge ${state.labels}, both ${one.labels_shared}; answers with others are ${state.foreign_labels === "refuse" ? "refused" : "let through"} (GATEKEEPER_REMOTE_FOREIGN_LABELS)`;
      const labels = { true: "same labels", false: differing, null: "not asked yet" }[String(one.labels_match)];
      const breaker = one.breaker_open ? "breaker open, not asked for now" : "breaker closed";
      return make("li", `${one.name}: ${one.is_self ? "leads back to this edge, not asked" : `${breaker}, ${labels}`}`);
    }),
  );
  say("store", `Policies are kept in ${state.policy_store === "redis" ? "Redis" : "SQLite"}, which ${state.policy_store_up ? "answers" : "is down: the last policy goes on, changes are refused"}.`);
  say("identity", `Gate ${state.gate_digest.slice(0, 12)}, score ${state.score}, version ${state.service_version}, up for ${Math.round(state.uptime_s / 60)} min.`);
  say("version", `version ${state.policy.version}`);
  const image = state.task === "image-classification";
  $("try-text-label").hidden = image;
  $("try-image-label").hidden = !image;
  $("try-key-label").hidden = !state.guarded;
  if (!state.admin) say("token-message", "Changes are off: this edge was started without GATEKEEPER_ADMIN_TOKEN.");
  $("sign-in").querySelectorAll("input, button").forEach((one) => (one.disabled = !state.admin));
  showSignIn();
}

function showSignIn() {
  // One line: either the token is asked for, or it can be forgotten.
  for (const one of $("sign-in").querySelectorAll("label, input, [type=submit]")) one.hidden = trusted;
  $("forget").hidden = !trusted;
}

function showDegrading() {
  const { degrading } = state;
  $("degrading").hidden = degrading === null;
  if (degrading === null) return;
  const why = Object.entries(degrading.reasons).map(([reason, count]) => `${count} ${reason}`).join(", ");
  const since = new Date(Date.now() - 1000 * degrading.seconds).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  const what = state.policy.on_remote_failure === "fail" ? "fail" : "are answered by the small model instead";
  say("degrading", `Nearly all deferrals ${what} since ${since}. Of the last ${degrading.requests} deferred requests: ${why}.`);
}

function showState(id, text, good) {
  set($(id), { "data-state": good ? "good" : "bad" }).querySelector("b").textContent = text;
}

// The plot, with the threshold to drag

const proposed = (field) => draft[field] ?? state.policy[field];
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
    inner,
    x: (value) => PLOT.left + (inner * (Math.min(Math.max(value, low), high) - low)) / (high - low),
    value: (x) => low + ((high - low) * Math.min(Math.max(x - PLOT.left, 0), inner)) / inner,
    bottom: height - PLOT.bottom,
  };
}

function showPlot() {
  const { width, height, inner, x, bottom } = scale();
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

function listenToHandle() {
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

// The draft and what would happen

function change(field, value) {
  draft[field] = value;
  settleDraft();
  say("change-message", "");
  showButtons();
  schedulePreview();
}

function showFields() {
  $("threshold").value = String(proposed("threshold"));
  $("deferral").value = proposed("deferral");
  $("on-remote-failure").value = proposed("on_remote_failure");
  $("remote-timeout-s").value = String(proposed("remote_timeout_s"));
}

const fieldsOf = (patch) => JSON.stringify(FIELDS.map((field) => patch[field] ?? null));
const upToDate = () => previewed !== null && previewed.fields === fieldsOf(draft) && previewed.version === state.policy.version;

function showButtons() {
  const dirty = Object.keys(draft).length > 0;
  // Applied is what was read: not before the table tells of this very change.
  $("apply").disabled = !(dirty && trusted && !busy && lostSince === null && upToDate());
  $("discard").disabled = !dirty || busy;
  document.querySelectorAll("#history button").forEach((one) => (one.disabled = busy || lostSince !== null));
}

function schedulePreview() {
  clearTimeout(previewTimer);
  previewTimer = setTimeout(preview, PREVIEW_AFTER_MS);
  if (state !== null) $("preview").classList.toggle("stale", trusted && !upToDate());
}

async function preview() {
  const number = ++previewNumber;
  if (state === null || !state.admin) return;
  if (!trusted) {
    clearPreview();
    say("preview-message", "Enter the admin token to see what a change would do.");
    return;
  }
  const fields = fieldsOf(draft);
  previewedAt = Date.now();
  try {
    const answer = await asAdmin("policy/preview", "POST", { ...draft, gate_digest: state.gate_digest });
    if (number !== previewNumber) return; // a later one is on its way
    previewed = { fields, version: answer.version };
    showPreview(answer);
  } catch (error) {
    if (number !== previewNumber) return;
    clearPreview();
    refused("preview-message", error);
  }
  showButtons();
}

function clearPreview() {
  previewed = null;
  document.querySelectorAll("#preview td").forEach((cell) => (cell.textContent = ""));
}

function showPreview(answer) {
  const rows = { "row-expected-ratio": "expected_deferral_ratio", "row-accuracy": "expected_joint_accuracy", "row-recent-ratio": "recent_deferral_ratio" };
  for (const [id, field] of Object.entries(rows)) {
    const [now, then, difference] = $(id).querySelectorAll("td");
    const [before, after] = [answer.current[field], answer.proposed[field]];
    now.textContent = percent(before);
    then.textContent = percent(after);
    difference.textContent = before === null || after === null ? "" : `${signed(after - before)} points`;
  }
  const accuracy = answer.joint_accuracy_change;
  if (accuracy !== null && accuracy.low !== accuracy.high)
    $("row-accuracy").lastElementChild.textContent += ` [${signed(accuracy.low)} to ${signed(accuracy.high)}]`;
  $("preview").classList.toggle("stale", !upToDate());
  const known = answer.calibration_items ? some(answer.calibration_items, "calibration") : "no calibration data";
  const alone = answer.large_accuracy === null ? "" : `; there the small model alone has ${percent(answer.small_accuracy)}, the large one ${percent(answer.large_accuracy)}`;
  say("preview-message", `From ${known}, and ${some(answer.recent_items, "recent")}${alone}.`);
}

function refused(id, error, asked = false) {
  if (error instanceof Lost) say(id, "The edge does not answer; nothing was changed as far as this page knows.", "bad");
  else if (!(error instanceof Refused)) throw error;
  else if (error.status === 401) {
    forget();
    say("token-message", "This token was refused.", "bad");
    say(id, "Enter the admin token first.", "bad");
    if (asked) $("token").focus(); // nobody is torn away from what they are typing elsewhere
  } else if (error.status === 412 || error.status === 409)
    say(id, "Somebody else has changed the policy or the bundle meanwhile: look at it, then apply again.", "bad");
  else say(id, error.message, "bad");
  showButtons();
}

async function apply(event) {
  event.preventDefault();
  if (!upToDate()) return;
  say("history-message", "");
  const sent = { ...draft };
  const note = $("note").value;
  const changes = { ...sent, note, gate_digest: state.gate_digest };
  await write("change-message", async () => {
    const policy = await asAdmin("policy", "PATCH", changes, { "if-match": `"${previewed.version}"` });
    for (const field of FIELDS) if (draft[field] === sent[field]) delete draft[field]; // what was dragged meanwhile stays
    if ($("note").value === note) $("note").value = "";
    return `Version ${policy.version} is in force: threshold ${short(policy.threshold)}, deferral ${policy.deferral}.`;
  });
}

async function rollBack(version) {
  say("change-message", "");
  await write("history-message", async () => {
    const policy = await asAdmin("policy/rollback", "POST", { version });
    draft = {};
    return `Version ${version} is back, as version ${policy.version}: threshold ${short(policy.threshold)}, deferral ${policy.deferral}.`;
  });
  if (document.activeElement === document.body) $("history-message").focus(); // its button is gone
}

async function write(where, work) {
  busy = true;
  showButtons();
  try {
    const done = await work();
    await refresh().catch((error) => lose(error));
    showFields();
    if (trusted) await showHistory();
    say(where, done, "good");
  } catch (error) {
    refused(where, error, true);
  }
  busy = false;
  showButtons();
  schedulePreview();
}

// The token

async function signIn(given) {
  if (!/^[!-~]+$/.test(given)) {
    say("token-message", given ? "A token has no spaces and only plain characters: copy it again." : "Paste the token first.", "bad");
    return;
  }
  token = given;
  try {
    await asAdmin("status", "GET");
    trusted = true;
    sessionStorage.setItem("gatekeeper-admin-token", token);
    say("token-message", "Token accepted, for this tab.", "good");
    $("token").value = "";
  } catch (error) {
    if (error instanceof Lost) say("token-message", "The edge does not answer; the token is tried again when it does.", "bad");
    else refused("token-message", error, true);
    if (error.status === 401) say("token-message", "This token was refused.", "bad");
  }
  historyVersion = null;
  if (trusted) {
    const hadFocus = $("sign-in").contains(document.activeElement);
    showSignIn();
    if (hadFocus) $("policy").focus({ preventScroll: true }); // not the way to forget it: Enter may come twice
    showHistory();
  }
  schedulePreview();
  showButtons();
}

function forget() {
  token = "";
  trusted = false;
  showSignIn();
  sessionStorage.removeItem("gatekeeper-admin-token");
  $("history").hidden = true;
  $("older").hidden = true;
  $("history").querySelector("tbody").replaceChildren();
  historyVersion = null;
  clearPreview();
  say("history-message", "Enter the admin token to see it.");
}

// The history

async function showHistory() {
  const number = ++historyNumber;
  historyVersion = state?.policy.version ?? null;
  try {
    const { versions } = await asAdmin(`policy/history?limit=${historyLimit}`, "GET");
    if (number !== historyNumber || !trusted) return;
    const focused = document.activeElement?.dataset?.version;
    $("history").querySelector("tbody").replaceChildren(...versions.map(historyRow));
    $("history").hidden = false;
    $("older").hidden = historyLimit === HISTORY_LONG || versions.length < HISTORY_SHORT;
    if (focused) $("history").querySelector(`[data-version="${Number(focused)}"]`)?.focus();
    if (!$("history-message").classList.contains("good")) say("history-message", "");
  } catch (error) {
    if (number !== historyNumber) return;
    historyVersion = null;
    historyFailedAt = Date.now();
    if (!(error instanceof Lost)) refused("history-message", error);
  }
  showButtons();
}

function historyRow(policy) {
  const row = make("tr");
  const otherwise = [`deferral ${policy.deferral}`, policy.on_remote_failure, `${policy.remote_timeout_s}\u00a0s`].join(", ");
  const moment = new Date(policy.updated_at);
  for (const text of [`${policy.version}`, `${moment.toLocaleString()}, ${policy.updated_by}`, short(policy.threshold), otherwise, policy.note])
    row.append(make("td", text));
  const cell = make("td");
  if (policy.version === state?.policy.version) row.setAttribute("aria-current", "true");
  else {
    const button = make("button", `Roll back to ${policy.version}`, { type: "button", "data-version": policy.version });
    button.addEventListener("click", () => rollBack(policy.version));
    cell.append(button);
  }
  row.append(cell);
  return row;
}

// Try it

async function tryIt(event) {
  event.preventDefault();
  const box = $("answer");
  if (state === null) return;
  const key = $("try-key").value.trim();
  if (key && !/^[!-~]+$/.test(key)) return box.replaceChildren(make("p", "A key has no spaces and only plain characters: copy it again.", { class: "bad" }));
  const headers = key ? { authorization: `Bearer ${key}` } : {};
  try {
    let body;
    if (state.task === "image-classification") {
      const [file] = $("try-image").files;
      if (!file) return box.replaceChildren(make("p", "Choose an image first.", { class: "bad" }));
      body = new FormData();
      body.append("images", file);
    } else {
      if (!$("try-text").value) return box.replaceChildren(make("p", "Write a text first.", { class: "bad" }));
      body = JSON.stringify({ inputs: $("try-text").value });
      headers["content-type"] = "application/json";
    }
    const answer = await ask("v1/classify", { method: "POST", body, headers, timeoutMs: 1000 * state.policy.remote_timeout_s + 5000 });
    box.replaceChildren(...told(answer.outputs[0], answer.threshold));
  } catch (error) {
    if (!(error instanceof Lost || error instanceof Refused)) throw error;
    box.replaceChildren(make("p", error instanceof Lost ? "The edge does not answer." : error.message, { class: "bad" }));
  }
}

function told(output, threshold) {
  const side = output.confidence >= threshold ? "at or above" : "below";
  const who = output.answered_by === "small" ? "The small model answered" : "The large model answered";
  const why = output.reason === null ? "it was sure enough" : REASONS[output.reason] ?? output.reason;
  const lines = [
    make("h3", output.label),
    make("p", `${who}: ${why}. (${output.decision})`, { class: "who" }),
    make("p", `Confidence of the small model ${short(output.confidence)}, ${side} the threshold ${short(threshold)}; score of the answer ${short(output.score)}.`),
  ];
  if (output.answered_by === "large" && output.small) lines.push(make("p", `The small model would have said ${output.small.label} (${short(output.small.score)}).`));
  return lines;
}

// Begin

listenToHandle();
addEventListener("resize", () => state && showPlot());
$("threshold").addEventListener("input", (event) => {
  const value = event.target.valueAsNumber;
  if (state === null || Number.isNaN(value)) return;
  change("threshold", value); // out of the range too: the edge says what is wrong with it
  showPlot();
});
$("deferral").addEventListener("change", (event) => { change("deferral", event.target.value); showPlot(); });
$("on-remote-failure").addEventListener("change", (event) => change("on_remote_failure", event.target.value));
$("remote-timeout-s").addEventListener("input", (event) => {
  if (!Number.isNaN(event.target.valueAsNumber)) change("remote_timeout_s", event.target.valueAsNumber);
});
$("change").addEventListener("submit", apply);
$("discard").addEventListener("click", () => { draft = {}; showFields(); showPlot(); showButtons(); say("change-message", ""); schedulePreview(); });
$("sign-in").addEventListener("submit", (event) => { event.preventDefault(); signIn($("token").value.trim()); });
$("forget").addEventListener("click", () => { forget(); say("token-message", "Forgotten."); showButtons(); schedulePreview(); });
$("try").addEventListener("submit", tryIt);
$("older").addEventListener("click", () => { historyLimit = HISTORY_LONG; showHistory(); });
if (token) signIn(token);
poll();
