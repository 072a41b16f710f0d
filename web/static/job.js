// The live part of the job page. Numbers, curve and log follow the stream; everything else is the
// server's own page, fetched again and morphed in when something worth it has happened.
(() => {
  "use strict";

  const FINAL = ["succeeded", "failed", "cancelled"];
  const LINES = 500;
  let stream = null;
  let polling = null;
  let again = 0; // when a page that polls asks for a stream once more
  let cursor = 0;
  let redrawing = null;
  let building = null;

  const page = () => document.getElementById("job");
  const put = (id, text) => {
    const element = document.getElementById(id);
    if (element && element.textContent !== text) element.textContent = text;
  };
  const figure = (value) => (value == null ? "–" : Math.abs(value) >= 100 ? Math.round(value).toLocaleString() : Number(value).toPrecision(3));
  const whole = (value) => (value == null ? "–" : Math.round(value).toLocaleString());

  function span(seconds) {
    const all = Math.max(0, Math.floor(seconds));
    const two = (number) => String(number).padStart(2, "0");
    if (all < 60) return `${all} s`;
    if (all < 3600) return `${Math.floor(all / 60)} m ${two(all % 60)} s`;
    return `${Math.floor(all / 3600)} h ${two(Math.floor((all % 3600) / 60))} m`;
  }

  function size(bytes) {
    const units = ["bytes", "kB", "MB", "GB", "TB"];
    let power = 0;
    for (; bytes >= 1000 && power < 4; power++) bytes /= 1000;
    return `${bytes >= 100 || !power ? Math.round(bytes) : bytes.toFixed(1)} ${units[power]}`;
  }

  function onStep({ step, data }) {
    window.burnishChart?.add(step, data.loss);
    put("live-loss", figure(data.loss));
    put("live-epoch", figure(data.epoch));
    put("live-tps", whole(data.tokens_per_second));
    put("live-eps", figure(data.examples_per_second));
    put("live-tokens", whole(data.tokens));
    if (data.memory_bytes) put("live-memory", size(data.memory_bytes));
    if (data.total_steps) {
      put("live-step", `step ${whole(step)} of ${whole(data.total_steps)}`);
      const bar = document.getElementById("live-bar");
      if (bar) [bar.max, bar.value] = [data.total_steps, step];
    }
    put("live-eta", left(data));
  }

  function left({ eta_seconds: seconds }) {
    if (!seconds) return "";
    const ends = new Date(Date.now() + 1000 * seconds);
    const clock = ends.toLocaleTimeString(undefined, { hour: "2-digit", minute: "2-digit" });
    return ` · ${span(seconds)} left (${clock})`;
  }

  // Reading, answering, packaging: so many of so many.
  function onStage({ data }) {
    const bar = document.getElementById("live-bar");
    if (page().dataset.kind === "train" || !data.total || !bar) return false;
    [bar.max, bar.value] = [data.total, data.done ?? 0];
    put("live-step", `${whole(data.done ?? 0)} of ${whole(data.total)}`);
    const pace = data.rows_per_second ? ` · ${figure(data.rows_per_second)} rows/s` : "";
    const tokens = data.tokens_per_second ? ` · ${whole(data.tokens_per_second)} tokens/s` : "";
    put("live-eta", pace + tokens + left(data));
    return (data.done ?? 0) > 0;
  }

  function onLog({ id, at, type, data }) {
    const list = document.getElementById("log-lines");
    if (!list || list.querySelector(`[data-id="${id}"]`)) return;
    const below = list.scrollHeight - list.scrollTop - list.clientHeight < 24;
    list.querySelector(".none")?.remove();
    const level = type === "error" ? "error" : data.level || "info";
    const line = document.createElement("li");
    line.className = level;
    line.dataset.id = id;
    const time = document.createElement("time");
    time.className = "at";
    time.dateTime = at;
    time.textContent = new Date(at).toISOString().slice(11, 19);
    const word = document.createElement("span");
    word.className = "level";
    word.textContent = level;
    const message = document.createElement("span");
    message.className = "message";
    message.textContent = data.message || "";
    line.append(time, word, message);
    list.append(line);
    while (list.children.length > LINES) list.firstChild.remove();
    if (below) list.scrollTop = list.scrollHeight;
  }

  function onEvent(event) {
    cursor = Math.max(cursor, event.id);
    if (event.type === "step") onStep(event);
    else if (event.type === "stage" && onStage(event)) return;
    else if (event.type === "log" || event.type === "error") onLog(event);
    else {
      if (event.type === "eval" && event.data.metrics) window.burnishChart?.measure(event.step ?? 0, event.data.metrics.loss);
      redraw();
    }
  }

  function onJob(job) {
    const shown = page();
    const different = shown.dataset.state !== job.state || shown.dataset.mark !== (job.mark ?? "");
    if (different) {
      const first = shown.dataset.mark === undefined && shown.dataset.state === job.state;
      shown.dataset.mark = job.mark ?? "";
      if (!first) redraw();
    }
    if (FINAL.includes(job.state)) stop();
  }

  function redraw() {
    clearTimeout(redrawing);
    redrawing = setTimeout(async () => {
      const mark = page().dataset.mark;
      await htmx.ajax("GET", location.pathname, { target: "#job", select: "#job", swap: "outerMorph" });
      if (mark !== undefined) page().dataset.mark = mark;
      scrub();
      document.title = document.querySelector("h1").textContent + " · " + page().dataset.state + " · Burnish";
      watchBuilding();
    }, 250);
  }

  // A merged model or a GGUF file may be built long after the job has ended: while one is, look every two seconds.
  function watchBuilding() {
    clearTimeout(building);
    if (!document.hidden && document.querySelector("#downloads .is-building")) building = setTimeout(redraw, 2000);
  }

  // --- the stream, and polling where there is none -------------------------------------------

  function start() {
    if (stream || polling || FINAL.includes(page()?.dataset.state)) return;
    stream = new EventSource(`${location.pathname}/events?after=${cursor}`);
    stream.addEventListener("event", (message) => onEvent(JSON.parse(message.data)));
    stream.addEventListener("job", (message) => onJob(JSON.parse(message.data)));
    stream.onerror = () => {
      if (stream?.readyState !== EventSource.CLOSED) return; // the browser tries again by itself
      stream = null;
      again = Date.now() + 30_000;
      polling ??= setInterval(poll, 2000);
    };
  }

  function stop() {
    stream?.close();
    clearInterval(polling);
    clearTimeout(building);
    stream = polling = null;
  }

  async function poll() {
    try {
      const answer = await fetch(`${location.pathname}/events?after=${cursor}&once=1`);
      if (!answer.ok) return;
      const told = await answer.json();
      told.events.forEach(onEvent);
      onJob(told.job);
    } catch {
      return; // the next poll tries again
    }
    if (polling && Date.now() > again) {
      clearInterval(polling);
      polling = null;
      start();
    }
  }

  // --- answers by step ------------------------------------------------------------------------

  function scrub() {
    const input = document.getElementById("scrub");
    const steps = document.getElementById("samples")?.dataset.steps.split(",");
    if (!input || !steps) return;
    const last = Number(input.max);
    const atEnd = Number(input.value) === last;
    if (steps.length - 1 !== last) {
      input.max = String(steps.length - 1);
      if (atEnd) input.value = input.max;
    }
    const step = steps[Number(input.value)];
    input.nextElementSibling.textContent = Number(step).toLocaleString();
    for (const answer of document.querySelectorAll("#samples [data-step]")) answer.hidden = answer.dataset.step !== step;
  }

  addEventListener("DOMContentLoaded", () => {
    if (!page()) return;
    cursor = Number(page().dataset.cursor);
    const list = document.getElementById("log-lines");
    if (list) list.scrollTop = list.scrollHeight;
    document.addEventListener("input", (event) => event.target.id === "scrub" && scrub());
    document.addEventListener("visibilitychange", () => {
      if (document.hidden) return stop();
      redraw();
      start();
    });
    if (!document.hidden) start();
    watchBuilding();
  });
  addEventListener("pagehide", stop);
})();
