// The admin token: kept for this tab, tried, sent with what needs it, and forgotten where the edge refuses it.

import { ask, Lost, Refused, state } from "./edge.js";
import { $, say } from "./elements.js";

export let token = sessionStorage.getItem("gatekeeper-admin-token") || "";
export let trusted = false; // the token has been accepted
const forgetters = []; // what else is forgotten with it

export function whenForgotten(listener) {
  forgetters.push(listener);
}

export const asAdmin = (path, method, content, headers = {}) =>
  ask(`admin/v1/${path}`, {
    method,
    body: content === undefined ? undefined : JSON.stringify(content),
    headers: { authorization: `Bearer ${token}`, ...(content === undefined ? {} : { "content-type": "application/json" }), ...headers },
  });

export function showToken() {
  if (!state.admin) say("token-message", "Changes are off: this edge was started without GATEKEEPER_ADMIN_TOKEN.");
  $("sign-in").querySelectorAll("input, button").forEach((one) => (one.disabled = !state.admin));
  showSignIn();
}

function showSignIn() {
  // One line: either the token is asked for, or it can be forgotten.
  for (const one of $("sign-in").querySelectorAll("label, input, [type=submit]")) one.hidden = trusted;
  $("forget").hidden = !trusted;
}

export async function signIn(given) {
  // True where it could be tried, whatever came of it.
  if (!/^[!-~]+$/.test(given)) {
    say("token-message", given ? "A token has no spaces and only plain characters: copy it again." : "Paste the token first.", "bad");
    return false;
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
  if (trusted) {
    const hadFocus = $("sign-in").contains(document.activeElement);
    showSignIn();
    if (hadFocus) $("policy").focus({ preventScroll: true }); // not the way to forget it: Enter may come twice
  }
  return true;
}

export function forget() {
  token = "";
  trusted = false;
  showSignIn();
  sessionStorage.removeItem("gatekeeper-admin-token");
  for (const listener of forgetters) listener();
}

export function refused(id, error, asked = false) {
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
}
