// The console's page: asks the edge once a second, shows the answer, and listens to what the operator does.
// The rest lies beside it, a noun a file, and knows nothing of this one. service/api/console.py serves what it lists.

import { change, draft, forgetDraft, forgetPreview, repeatPreview, schedulePreview, settleDraft, showButtons, showFields } from "./draft.js";
import { lose, Lost, lostSince, refresh, Refused, regain, state, whenTold } from "./edge.js";
import { $, say } from "./elements.js";
import { showParts } from "./parts.js";
import { listenToHandle, showPlot } from "./plot.js";
import { forget, showToken, signIn, token, trusted } from "./token.js";
import { forgetTrend, showTraffic } from "./traffic.js";
import { showTrial, tryIt } from "./trial.js";
import { apply, followHistory, forgetHistory, showHistory, showOlder } from "./versions.js";

const POLL_MS = 1000;

async function poll() {
  try {
    await refresh();
    if (lostSince !== null) found();
    repeatPreview();
  } catch (error) {
    if (!(error instanceof Lost || error instanceof Refused)) throw error; // a fault of this page, for its log
    lose(error);
  } finally {
    showButtons();
    setTimeout(poll, document.hidden ? 5 * POLL_MS : POLL_MS);
  }
}

function found() {
  regain();
  if (token && !trusted) enter(token);
  schedulePreview();
}

async function enter(given) {
  if (!(await signIn(given))) return;
  if (trusted) showHistory();
  schedulePreview();
  showButtons();
}

function show(before) {
  if (before !== null && before.service_version !== state.service_version) location.reload(); // an upgrade: its page may be another
  const another = before !== null && before.gate_digest !== state.gate_digest;
  const changed = before !== null && (another || before.policy.version !== state.policy.version);
  if (another) forgetGate();
  settleDraft();
  showTraffic();
  showParts();
  say("version", `version ${state.policy.version}`);
  showTrial();
  showToken();
  showPlot();
  if (before === null || changed) {
    showFields();
    schedulePreview();
  }
  if (changed && !another && Object.keys(draft).length)
    say("change-message", `The policy has changed meanwhile: version ${state.policy.version} is in force. Your change is compared with that one.`);
  followHistory();
}

function forgetGate() {
  // Another bundle: a threshold, a draft and a history belong to one gate.
  forgetDraft();
  forgetPreview();
  forgetTrend();
  forgetHistory();
  say("change-message", "");
  say("history-message", "");
}

// Begin

whenTold(show);
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
$("discard").addEventListener("click", () => { forgetDraft(); showFields(); showPlot(); showButtons(); say("change-message", ""); schedulePreview(); });
$("sign-in").addEventListener("submit", (event) => { event.preventDefault(); enter($("token").value.trim()); });
$("forget").addEventListener("click", () => { forget(); say("token-message", "Forgotten."); showButtons(); schedulePreview(); });
$("try").addEventListener("submit", tryIt);
$("older").addEventListener("click", showOlder);
if (token) enter(token);
poll();
