// The long form: it is drawn again by the server when a choice changes what can be chosen (the parts that
// `data-redraws` names), and only its quote when a number changes. What was typed travels along both ways.
(() => {
  "use strict";

  const form = document.querySelector("form[data-redraw]");
  if (!form) return;
  let waiting;

  function redraw(part) {
    clearTimeout(waiting);
    const sent = new FormData(form);
    sent.set("redraw", "1");
    fetch(form.action, { method: "POST", body: sent, headers: { "HX-Request": "true" } })
      .then((answer) => (answer.ok ? answer.text() : Promise.reject(answer.status)))
      .then((text) => {
        const fresh = new DOMParser().parseFromString(text, "text/html");
        for (const id of part) {
          const old = document.getElementById(id);
          const found = fresh.getElementById(id);
          if (old && found) replace(old, found);
        }
      })
      .catch(() => {}); // the form itself goes on working; the server checks everything on submit
  }

  function replace(old, fresh) {
    const focused = document.activeElement?.id;
    const open = [...old.querySelectorAll("details[open]")].map((details) => details.id);
    const inside = old.contains(document.activeElement);
    const radio = inside && document.activeElement.type === "radio" ? document.activeElement.value : null;
    const node = document.importNode(fresh, true);
    for (const id of open) node.querySelector(`#${CSS.escape(id)}`)?.setAttribute("open", "");
    old.replaceWith(node);
    if (radio !== null) node.querySelector(`input[type=radio][value="${CSS.escape(radio)}"]`)?.focus();
    else if (inside && focused) document.getElementById(focused)?.focus();
    countChanged();
  }

  function countChanged() {
    const changed = [...form.querySelectorAll("#advanced [data-default]")].filter((knob) => knob.value.trim() !== knob.dataset.default);
    const shown = form.querySelector("[data-changed]");
    if (shown) shown.textContent = String(changed.length);
  }

  form.addEventListener("change", (event) => {
    const redraws = event.target.closest("[data-redraws]");
    if (redraws) redraw((redraws.dataset.redraws || "drawing quote").split(" "));
  });

  form.addEventListener("input", (event) => {
    countChanged();
    if (!event.target.matches("[data-default]")) return;
    clearTimeout(waiting);
    waiting = setTimeout(() => redraw(["quote"]), 350);
  });

  form.addEventListener("click", (event) => {
    const button = event.target.closest("[data-fill]");
    if (!button) return;
    const input = document.getElementById(button.dataset.fill);
    input.value = button.dataset.with;
    input.dispatchEvent(new Event("change", { bubbles: true }));
  });

  countChanged();
})();
