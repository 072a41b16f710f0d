// On every page: times that stay true, buttons that copy, forms that are sent once, lists that refresh.
(() => {
  "use strict";

  const steps = [[86400, "d"], [3600, "h"], [60, "m"], [1, "s"]];

  function ago(seconds) {
    const distance = Math.abs(seconds);
    if (distance < 10) return seconds >= 0 ? "just now" : "now";
    if (distance >= 30 * 86400) return null;
    const [length, unit] = steps.find(([length]) => distance >= length);
    const number = Math.floor(distance / length);
    return seconds >= 0 ? `${number} ${unit} ago` : `in ${number} ${unit}`;
  }

  function tellTimes() {
    for (const time of document.querySelectorAll("time[data-ago]")) {
      const moment = new Date(time.dateTime);
      const said = ago((Date.now() - moment) / 1000);
      if (said && time.textContent !== said) time.textContent = said;
      time.title = moment.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "long" });
    }
    for (const time of document.querySelectorAll("time[data-clock]")) {
      time.textContent = new Date(time.dateTime).toLocaleTimeString(undefined, { hour: "2-digit", minute: "2-digit" });
    }
  }

  async function copy(button) {
    const text = document.getElementById(button.dataset.copy)?.textContent ?? "";
    try {
      await navigator.clipboard.writeText(text.trim());
      const before = button.textContent;
      button.textContent = "Copied";
      setTimeout(() => (button.textContent = before), 1500);
    } catch {
      getSelection().selectAllChildren(document.getElementById(button.dataset.copy));
    }
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-copy]");
    if (button) copy(button);
    for (const menu of document.querySelectorAll("details.switcher[open]")) {
      if (!menu.contains(event.target)) menu.open = false;
    }
  });

  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    for (const menu of document.querySelectorAll("details.switcher[open]")) {
      menu.open = false;
      menu.querySelector("summary").focus();
    }
  });

  // A form is sent once; the server's nonce makes a second click harmless even without this.
  document.addEventListener("submit", (event) => {
    const form = event.target;
    if (form.method !== "post" || event.defaultPrevented) return;
    if (form.dataset.sent && Date.now() - Number(form.dataset.sent) < 5000) return event.preventDefault();
    form.dataset.sent = String(Date.now());
  });
  addEventListener("pageshow", () => document.querySelectorAll("form[data-sent]").forEach((form) => delete form.dataset.sent));

  // `hx-trigger="tick from:body"` refreshes a list, but never while the tab is hidden.
  setInterval(() => {
    tellTimes();
    if (!document.hidden && window.htmx) document.body.dispatchEvent(new CustomEvent("tick"));
  }, 5000);
  document.addEventListener("visibilitychange", () => !document.hidden && document.body.dispatchEvent(new CustomEvent("tick")));
  document.addEventListener("htmx:after:swap", tellTimes);

  addEventListener("DOMContentLoaded", () => {
    tellTimes();
    document.querySelector("[aria-invalid='true']")?.focus();
  });
})();
