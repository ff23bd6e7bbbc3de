// The parts of the service and whether they are well: the edge, the large model and its servers, the policy store.

import { state } from "./edge.js";
import { $, make, say, showState } from "./elements.js";

export function showParts() {
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
