// The loss chart: training as a line, held-out rows as dots with their own line; the table below it
// has the same numbers. `burnishChart.add(step)` and `.measure(step)` are called as events arrive.
(() => {
  "use strict";

  const HEIGHT = 318;
  const MOST = 4000; // points kept in memory; beyond, every second one goes
  const WHOLE = [1, 2, 5, 10, 20, 25, 50, 100, 200, 250, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 1e6]; // steps are whole
  let plot = null;
  let holder = null;
  const train = { step: [], loss: [] };
  const valid = { step: [], loss: [] };
  let waiting = false;

  const colour = (name) => {
    const probe = document.createElement("span");
    probe.style.color = `var(${name})`;
    document.body.append(probe);
    const found = getComputedStyle(probe).color;
    probe.remove();
    return found;
  };

  const figure = (value) => (value == null ? "–" : Number(value).toPrecision(3));
  const asked = (name) => document.querySelector(`[data-chart="${name}"]`)?.checked ?? false;

  function smooth(values) {
    let kept = null;
    return values.map((value) => {
      if (value == null) return null;
      kept = kept == null ? value : 0.9 * kept + 0.1 * value;
      return kept;
    });
  }

  // uPlot wants one x axis: the steps of both curves, merged.
  function merged() {
    const steps = [...new Set([...train.step, ...valid.step])].sort((a, b) => a - b);
    const loss = asked("smooth") ? smooth(train.loss) : train.loss;
    const at = new Map(train.step.map((step, n) => [step, loss[n]]));
    const held = new Map(valid.step.map((step, n) => [step, valid.loss[n]]));
    return [steps, steps.map((step) => at.get(step)), steps.map((step) => held.get(step) ?? undefined)];
  }

  function draw() {
    if (!holder || !window.uPlot || (!train.step.length && !valid.step.length)) return;
    holder.querySelector(".waiting")?.remove();
    plot?.destroy();
    const soft = colour("--text-soft");
    const line = colour("--line");
    const axis = { stroke: soft, grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1 }, font: `12px ${getComputedStyle(document.body).fontFamily}` };
    const trained = colour("--chart-train");
    const measured = colour("--chart-eval");
    plot = new uPlot({
      width: holder.clientWidth,
      height: HEIGHT,
      cursor: { drag: { x: true, y: false } },
      scales: { x: { time: false }, y: { distr: asked("log") ? 3 : 1 } },
      axes: [{ ...axis, incrs: WHOLE }, { ...axis, size: 52, values: (_, ticks) => ticks.map((tick) => (tick == null ? "" : Number(tick.toPrecision(3)).toString())) }],
      series: [
        { label: "step", value: (_, step) => (step == null ? "–" : step.toLocaleString()) },
        { label: "training", stroke: trained, width: 1.5, spanGaps: true, points: { show: train.step.length < 3 }, value: (_, v) => figure(v) },
        { label: "held-out", stroke: measured, width: 1.5, dash: [5, 4], spanGaps: true, points: { show: true, size: 7, fill: measured }, value: (_, v) => figure(v) },
      ],
    }, merged(), holder);
  }

  function refresh() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      if (plot) plot.setData(merged());
      else draw();
    });
  }

  function put(curve, step, loss) {
    const last = curve.step.length - 1;
    if (step == null || loss == null) return;
    if (last >= 0 && step <= curve.step[last]) {
      const at = curve.step.indexOf(step);
      if (at >= 0) curve.loss[at] = loss;
      return; // an attempt that resumed repeats steps
    }
    curve.step.push(step);
    curve.loss.push(loss);
    if (curve.step.length > MOST) for (const key of ["step", "loss"]) curve[key] = curve[key].filter((_, n) => n % 2 === 0);
  }

  async function load() {
    holder = document.getElementById("chart");
    if (!holder) return;
    const answer = await fetch(holder.dataset.series);
    if (!answer.ok) return;
    const told = await answer.json();
    train.step = told.train.step ?? [];
    train.loss = told.train.loss ?? [];
    valid.step = told.valid.step ?? [];
    valid.loss = told.valid.loss ?? [];
    if (told.base?.loss != null && valid.step[0] !== 0) {
      valid.step = [0, ...valid.step];
      valid.loss = [told.base.loss, ...valid.loss];
    }
    draw();
  }

  window.burnishChart = {
    add(step, loss) { put(train, step, loss); refresh(); },
    measure(step, loss) { put(valid, step, loss); refresh(); },
  };

  addEventListener("DOMContentLoaded", () => {
    load();
    document.addEventListener("change", (event) => event.target.matches("[data-chart]") && draw());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
    const chart = document.getElementById("chart");
    if (chart) new ResizeObserver(() => plot && plot.width !== chart.clientWidth && plot.setSize({ width: chart.clientWidth, height: HEIGHT })).observe(chart);
  });
})();
