// A trial, section "Try it": one text or image is classified, and who answered and why is told.

import { ask, Lost, Refused, state } from "./edge.js";
import { $, make } from "./elements.js";
import { short } from "./words.js";

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

export function showTrial() {
  const image = state.task === "image-classification";
  $("try-text-label").hidden = image;
  $("try-image-label").hidden = !image;
  $("try-key-label").hidden = !state.guarded;
}

export async function tryIt(event) {
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
    make("p", `Confidence of the small model ${short(output.confidence)}, ${side} the threshold ${short(threshold)}; score of the answer ${output.score === null ? "not told" : short(output.score)}.`),
  ];
  if (output.answered_by === "large" && output.small) lines.push(make("p", `The small model would have said ${output.small.label} (${short(output.small.score)}).`));
  return lines;
}
