// The draft of the next policy: its fields, the preview of what it would do, and when it may be applied.

import { lostSince, state } from "./edge.js";
import { $, say } from "./elements.js";
import { asAdmin, refused, trusted, whenForgotten } from "./token.js";
import { percent, signed, some } from "./words.js";

const PREVIEW_AFTER_MS = 150;
const PREVIEW_AGAIN_MS = 3000; // recent traffic moves on
const FIELDS = ["threshold", "deferral", "on_remote_failure", "remote_timeout_s"];

export let draft = {}; // the fields that differ from the policy in force
export let previewed = null; // {fields, version}: what the table tells of
let previewedAt = 0;
let previewNumber = 0;
let previewTimer = 0;
let busy = false; // a change is on its way

export const proposed = (field) => draft[field] ?? state.policy[field];

export function change(field, value) {
  draft[field] = value;
  settleDraft();
  say("change-message", "");
  showButtons();
  schedulePreview();
}

export function settleDraft() {
  for (const field of FIELDS) if (draft[field] === state.policy[field]) delete draft[field];
}

export function forgetDraft() {
  draft = {};
}

export function forgetSent(sent) {
  for (const field of FIELDS) if (draft[field] === sent[field]) delete draft[field]; // what was dragged meanwhile stays
}

export function showFields() {
  $("threshold").value = String(proposed("threshold"));
  $("deferral").value = proposed("deferral");
  $("on-remote-failure").value = proposed("on_remote_failure");
  $("remote-timeout-s").value = String(proposed("remote_timeout_s"));
}

const fieldsOf = (patch) => JSON.stringify(FIELDS.map((field) => patch[field] ?? null));
export const upToDate = () => previewed !== null && previewed.fields === fieldsOf(draft) && previewed.version === state.policy.version;

export function showButtons() {
  const dirty = Object.keys(draft).length > 0;
  // Applied is what was read: not before the table tells of this very change.
  $("apply").disabled = !(dirty && trusted && !busy && lostSince === null && upToDate());
  $("discard").disabled = !dirty || busy;
  document.querySelectorAll("#history button").forEach((one) => (one.disabled = busy || lostSince !== null));
}

export function setBusy(writing) {
  busy = writing;
  showButtons();
}

export function schedulePreview() {
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

export function repeatPreview() {
  if (trusted && !document.hidden && Date.now() - previewedAt > PREVIEW_AGAIN_MS) schedulePreview();
}

export function forgetPreview() {
  previewed = null;
}

function clearPreview() {
  forgetPreview();
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

whenForgotten(clearPreview);
