'use strict';

// Draws the figures that Python computed; shows and hides their runs.
const figures = JSON.parse(document.getElementById('figures').textContent);
const lossIds = ['loss-tokens', 'loss-seconds'].filter((id) => id in figures);
const hidden = new Set();
const curves = 'score-curves' in figures ? figures['score-curves'] : null;
const state = {
  kind: 'eval',
  range: 'last 75 %',
  column: curves && curves.first,
};

function allTraces() {
  return lossIds.flatMap((id) => figures[id].data);
}

function isShown(trace) {
  if (hidden.has(trace.meta.run)) return false;
  const kind = trace.meta.kind;
  if (kind === 'mark') return true;
  if (kind === 'raw') return state.kind === 'train';
  return kind === state.kind;
}

function isShownCurve(trace) {
  const {column, runs} = trace.meta;
  const out = runs.length > 0 && runs.every((run) => hidden.has(run));
  return column === state.column && !out;
}

function zoomed(id) {
  return structuredClone(figures[id].zooms[state.kind][state.range]);
}

function redraw() {
  for (const id of lossIds) {
    const visible = figures[id].data.map(isShown);
    Plotly.update(id, {visible: visible}, zoomed(id));
  }
  if (curves) {
    Plotly.restyle('score-curves', {visible: curves.data.map(isShownCurve)});
  }
}

function press(button, on) {
  button.setAttribute('aria-pressed', on ? 'true' : 'false');
}

function pressChips() {
  for (const chip of document.querySelectorAll('.chip')) {
    const runs = JSON.parse(chip.dataset.runs);
    press(chip, runs.some((run) => !hidden.has(run)));
  }
}

function onChip(chip) {
  const runs = JSON.parse(chip.dataset.runs);
  const hide = runs.some((run) => !hidden.has(run));
  for (const run of runs) {
    if (hide) hidden.add(run);
    else hidden.delete(run);
  }
  pressChips();
  redraw();
}

function onSwitch(button) {
  const name = button.parentElement.dataset.name;
  state[name] = button.dataset.value;
  for (const other of button.parentElement.children) {
    press(other, other === button);
  }
  redraw();
}

function start() {
  // Validation losses at the end alone make no curve.
  const isCurve = (trace) => trace.meta.kind === 'eval' && trace.x.length > 2;
  if (!allTraces().some(isCurve)) {
    state.kind = 'train';
  }
  for (const id of lossIds) {
    for (const trace of figures[id].data) trace.visible = isShown(trace);
  }
  if (curves) {
    for (const trace of curves.data) trace.visible = isShownCurve(trace);
  }
  const config = {
    responsive: true,
    displaylogo: false,
    showLink: false,
    modeBarButtons: [['toImage', 'zoom2d', 'pan2d', 'resetScale2d']],
  };
  for (const id of Object.keys(figures)) {
    Plotly.newPlot(id, figures[id].data, figures[id].layout, config);
  }
  redraw();
  for (const button of document.querySelectorAll('.switch button')) {
    const name = button.parentElement.dataset.name;
    press(button, state[name] === button.dataset.value);
    button.addEventListener('click', () => onSwitch(button));
  }
  for (const chip of document.querySelectorAll('.chip')) {
    chip.addEventListener('click', () => onChip(chip));
  }
}

start();
