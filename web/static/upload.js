// Uploads with a progress bar and drag and drop; without this script the form posts by itself.
(() => {
  "use strict";

  const readable = (bytes) => (bytes >= 1e9 ? `${(bytes / 1e9).toFixed(1)} GB` : bytes >= 1e6 ? `${(bytes / 1e6).toFixed(1)} MB` : `${Math.ceil(bytes / 1e3)} kB`);

  function say(form, field, sentence) {
    const input = form.elements[field] ?? form.elements.file;
    let wrong = document.getElementById(`${input.name}-wrong`);
    if (!wrong) {
      wrong = document.createElement("p");
      wrong.id = `${input.name}-wrong`;
      wrong.className = "wrong";
      form.querySelector("[aria-live]").append(wrong);
    }
    wrong.textContent = sentence;
    input.setAttribute("aria-invalid", "true");
    input.setAttribute("aria-describedby", wrong.id);
    input.focus();
  }

  function clear(form) {
    for (const wrong of form.querySelectorAll(".wrong")) wrong.remove();
    for (const input of form.querySelectorAll("[aria-invalid]")) input.removeAttribute("aria-invalid");
  }

  function send(form) {
    clear(form);
    if (!form.elements.file.files.length) return say(form, "file", "Choose a file first.");
    const shown = form.querySelector(".upload-progress");
    const bar = shown.querySelector("progress");
    const words = shown.querySelector("[data-progress]");
    const button = form.querySelector("button[type=submit]");
    const request = new XMLHttpRequest();
    const done = () => {
      button.disabled = false;
      shown.hidden = true;
      delete form.dataset.sent;
    };
    request.open("POST", form.action);
    request.setRequestHeader("Accept", "application/json");
    request.responseType = "json";
    request.upload.onprogress = ({ loaded, total }) => {
      bar.value = loaded / total;
      words.textContent = loaded < total ? `${readable(loaded)} of ${readable(total)}, ${Math.floor((100 * loaded) / total)} %` : "Arrived; it is being looked at.";
    };
    request.onload = () => {
      if (request.status < 300 && request.response?.location) return location.assign(request.response.location);
      done();
      say(form, request.response?.field ?? "file", request.response?.message ?? `The server answered ${request.status}. Try again.`);
    };
    request.onerror = () => {
      done();
      say(form, "file", "The connection broke. Try again; nothing was stored.");
    };
    button.disabled = true;
    shown.hidden = false;
    request.send(new FormData(form));
  }

  for (const form of document.querySelectorAll("form[data-upload]")) {
    form.noValidate = true;
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      send(form);
    });
    for (const kind of ["dragenter", "dragover"]) {
      form.addEventListener(kind, (event) => {
        event.preventDefault();
        form.classList.add("over");
      });
    }
    for (const kind of ["dragleave", "drop"]) form.addEventListener(kind, () => form.classList.remove("over"));
    form.addEventListener("drop", (event) => {
      event.preventDefault();
      if (!event.dataTransfer.files.length) return;
      form.elements.file.files = event.dataTransfer.files;
      send(form);
    });
  }
})();
