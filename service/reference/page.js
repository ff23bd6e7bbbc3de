// Shows openapi.json with Swagger UI or ReDoc, whichever the page has loaded. Neither may ask another host for anything,
// and the content security policy of these pages would not let it.
"use strict";

// ReDoc shows its maker's logo from its maker's host. An image is drawn where it is part of the page, and not fetched.
const setAttribute = Element.prototype.setAttribute;
HTMLImageElement.prototype.setAttribute = function (name, value) {
  if (name !== "src" || String(value).startsWith("data:")) setAttribute.call(this, name, value);
};
Object.defineProperty(HTMLImageElement.prototype, "src", {
  get() { return this.getAttribute("src") ?? ""; },
  set(value) { this.setAttribute("src", value); },
});

async function show() {
  const response = await fetch("openapi.json", { credentials: "omit" });
  if (!response.ok) throw new Error(`openapi.json: the answer was ${response.status}`);
  const document_ = await response.json();
  // Where this page came from: behind a proxy that strips a prefix, requests to try need the prefix again.
  document_.servers = [{ url: new URL(".", location.href).pathname.replace(/\/$/, "") || "/" }];
  if (document.getElementById("swagger")) {
    // Its validator and its query parameters would have it ask elsewhere.
    SwaggerUIBundle({ dom_id: "#swagger", spec: document_, validatorUrl: null, queryConfigEnabled: false, deepLinking: true });
  } else {
    // Its search is a script made from a text, which the policy forbids.
    await Redoc.init(document_, { disableSearch: true, hideDownloadButton: true }, document.getElementById("redoc"));
  }
}

show().catch((error) => {
  const trouble = document.getElementById("trouble");
  trouble.textContent = `The API cannot be shown: ${error.message}`;
  trouble.hidden = false;
});
