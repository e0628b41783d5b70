'use strict';

// Draws the figures that Python computed, links them, and saves them.
const {figures, positions} = JSON.parse(
  document.getElementById('figures').textContent
);
const root = document.documentElement;
const off = new Set();
// What the switches say; see `initial`.
const state = {x: 'tokens', kind: 'eval'};
const drawn = new Set();
// The shown part of the runs' course, as shares of the longest.
let span = [0, 1];
const GAP = {x: 78, y: 92};
// Share of the shown part whose losses need not be seen.
const SKIPPED = 0.3;

const traces = Object.values(figures).flatMap((figure) => figure.data);
const linked = Object.keys(figures).filter((id) => figures[id].titles);

function axisName(letter, panel) {
  return letter + 'axis' + (panel === 1 ? '' : panel);
}

function panelOf(trace) {
  return Number((trace.yaxis || 'y').slice(1) || 1);
}

function isShown(trace) {
  const meta = trace.meta || {};
  if (off.has(meta.optimizer)) return false;
  if (trace.xs !== undefined && !(state.x in positions[trace.xs])) return false;
  return Object.entries(meta.when || {}).every(([k, v]) => state[k] === v);
}

function place(trace) {
  if (trace.xs === undefined) return;
  const all = positions[trace.xs];
  trace.x = all[state.x] || [];
  trace.customdata = trace.y.map((_, i) => Object.values(all).map((x) => x[i]));
}

// The last position on the chosen axis of what is drawn.
function reach() {
  let end = 0;
  for (const id of linked) {
    for (const trace of figures[id].data) {
      const x = isShown(trace) && positions[trace.xs][state.x];
      if (x && x.length) end = Math.max(end, x[x.length - 1]);
    }
  }
  return end || 1;
}

// Heights of what is seen, without diverged runs, which would flatten the rest.
function heights(figure, panel, from, to) {
  let low = Infinity;
  let high = -Infinity;
  for (const trace of figure.data) {
    const {kind, status} = trace.meta;
    if (panelOf(trace) !== panel || !isShown(trace)) continue;
    if (kind === 'raw' || kind === 'mark' || status === 'diverged') continue;
    trace.y.forEach((y, i) => {
      if (y === null || trace.x[i] < from || trace.x[i] > to) return;
      low = Math.min(low, y);
      high = Math.max(high, y);
    });
  }
  return low <= high ? [low, high] : null;
}

function frame(id) {
  const figure = figures[id];
  const {panels} = figure.layout.meta;
  const end = reach();
  const [from, to] = span.map((share) => share * end);
  const pad = 0.012 * (to - from);
  // The fall of the first steps would flatten all that follows.
  const start = from + SKIPPED * (to - from);
  const changes = {};
  for (let panel = 1; panel <= panels; panel++) {
    const x = axisName('x', panel);
    const y = axisName('y', panel);
    changes[x + '.range'] = [from - pad, to + pad];
    changes[x + '.title.text'] = figure.titles[state.x];
    const found = heights(figure, panel, start, to);
    if (!found) continue;
    const [low, high] = found;
    const room = 0.06 * (high - low) || 0.05 * Math.abs(high) || 0.1;
    changes[y + '.range'] = [low - room, high + room];
  }
  return changes;
}

// The panels' vertical axes where they depend on a switch.
function limits(figure) {
  const changes = {};
  if (figure.xnames) {
    const {title, tickvals, ticktext} =
      figure.xnames.of[state[figure.xnames.switch]];
    for (let panel = 1; panel <= figure.layout.meta.panels; panel++) {
      const x = axisName('x', panel);
      changes[x + '.title.text'] = title.text;
      changes[x + '.tickvals'] = tickvals;
      changes[x + '.ticktext'] = ticktext;
      changes[x + '.autorange'] = true;
    }
  }
  if (!figure.limits) return changes;
  const {of} = figure.limits;
  (of[state[figure.limits.switch]] || []).forEach((range, i) => {
    changes[axisName('y', i + 1) + '.range'] = range;
  });
  return changes;
}

// A title in lines that fit its panel.
function wrap(title, wide) {
  const most = Math.max(10, Math.floor(wide / 8.4));
  const lines = [''];
  for (const word of title.split(' ')) {
    const last = lines.pop();
    if (last && last.length + word.length >= most) lines.push(last, word);
    else lines.push(last ? last + ' ' + word : word);
  }
  return lines;
}

// Panels side by side where they fit. Returns the layout's changes.
function arrange(layout, width) {
  const {panels, height, narrowest, columns: most, titles} = layout.meta;
  // Labels of the rows stand between panels too.
  const between = Math.max(GAP.x, layout.margin.l + 14);
  const room = width - layout.margin.l - layout.margin.r;
  let columns = Math.floor((room + between) / (narrowest + between));
  columns = Math.max(1, Math.min(columns, panels, most));
  const rows = Math.ceil(panels / columns);
  columns = Math.ceil(panels / rows);
  const wide = (room - (columns - 1) * between) / columns;
  // Alone in its row a title may start above the labels of the axis.
  const shift = columns > 1 ? 0 : 6 - layout.margin.l;
  const wrapped = titles.map((title) => wrap(title, wide - shift));
  const extra = 18 * (Math.max(1, ...wrapped.map((lines) => lines.length)) - 1);
  const below = GAP.y + extra;
  const inner = rows * height + (rows - 1) * below;
  const top = layout.margin.t + extra;
  const changes = {
    height: inner + top + layout.margin.b,
    'margin.t': top,
  };
  for (let i = 0; i < panels; i++) {
    const left = ((i % columns) * (wide + between)) / room;
    const high = 1 - (Math.floor(i / columns) * (height + below)) / inner;
    const domain = [left, Math.min(1, left + wide / room)];
    changes[axisName('x', i + 1) + '.domain'] = domain;
    changes[axisName('y', i + 1) + '.domain'] = [
      Math.max(0, high - height / inner),
      high,
    ];
    changes[axisName('x', i + 1) + '.nticks'] = wide < 340 ? 5 : 0;
    const text = '<b>' + wrapped[i].join('<br>') + '</b>';
    changes[`annotations[${i}].text`] = text;
    changes[`annotations[${i}].x`] = left;
    changes[`annotations[${i}].y`] = high;
    changes[`annotations[${i}].xshift`] = shift;
  }
  return changes;
}

// Names beside marks stand over one another where there is no room.
const ROOM = {width: 620, marks: 8};

function modes(figure, width) {
  const {panels, narrowest, columns: most} = figure.layout.meta;
  const named = figure.data.filter((t) => /text/.test(t.mode || ''));
  const beside = Math.max(1, Math.min(panels, most, Math.floor(width / narrowest)));
  const bare = width / beside < ROOM.width && named.length / panels > ROOM.marks;
  return figure.data.map((trace) => {
    return bare && trace.mode ? trace.mode.replace('+text', '') : trace.mode;
  });
}

function widthOf(id) {
  return document.getElementById(id).clientWidth;
}

let drawing = false;

function redraw(ids) {
  drawing = true;
  for (const id of ids) {
    if (!drawn.has(id)) continue;
    const figure = figures[id];
    figure.data.forEach(place);
    const update = {visible: figure.data.map(isShown)};
    if (figure.titles) {
      update.x = figure.data.map((trace) => trace.x);
      update.customdata = figure.data.map((trace) => trace.customdata);
    }
    Plotly.update(id, update, figure.titles ? frame(id) : limits(figure));
    scale(id);
  }
  drawing = false;
}

// Lets print and zoom scale the drawing.
function scale(id) {
  for (const svg of document.getElementById(id).querySelectorAll('.main-svg')) {
    const size = ['width', 'height'].map((name) => svg.getAttribute(name));
    svg.setAttribute('viewBox', `0 0 ${size[0]} ${size[1]}`);
  }
}

// Draws what has come into sight, as a click opens it, and fits the rest.
function fit() {
  for (const id of Object.keys(figures)) {
    const width = widthOf(id);
    if (!width || figures[id].width === width) continue;
    figures[id].width = width;
    if (!drawn.has(id)) {
      draw(id);
      continue;
    }
    const changes = arrange(figures[id].layout, width);
    const mode = modes(figures[id], width);
    Plotly.update(id, {mode: mode}, {...changes, width: width});
    scale(id);
  }
}

// A part chosen in one figure is chosen in all that show a run's course.
function onZoom(id, event) {
  if (drawing) return;
  for (const [key, value] of Object.entries(event)) {
    if (/^xaxis\d*\.autorange$/.test(key)) {
      span = [0, 1];
      redraw(linked);
      return;
    }
    const match = key.match(/^(xaxis\d*)\.range\[0\]$/);
    if (match) {
      const end = reach();
      span = [value, event[match[1] + '.range[1]']].map((x) => x / end);
      markZoom();
      redraw(linked.filter((other) => other !== id));
      return;
    }
  }
}

function press(button, on) {
  button.setAttribute('aria-pressed', on ? 'true' : 'false');
}

function markZoom() {
  for (const button of document.querySelectorAll('[data-name=span] button')) {
    press(button, button.dataset.value === span.join(','));
  }
}

function onChip(chip) {
  const value = chip.dataset.optimizer;
  const hide = !off.has(value);
  if (hide) off.add(value);
  else off.delete(value);
  for (const other of document.querySelectorAll('.chip')) {
    if (other.dataset.optimizer === value) press(other, !hide);
  }
  redraw(Object.keys(figures));
}

function onSwitch(name, value) {
  if (name === 'span') span = value.split(',').map(Number);
  else state[name] = value;
  markSwitches();
  redraw(Object.keys(figures));
}

function markSwitches() {
  for (const group of document.querySelectorAll('.switch')) {
    if (group.dataset.name === 'span') continue;
    for (const button of group.children) {
      press(button, state[group.dataset.name] === button.dataset.value);
    }
  }
  for (const menu of document.querySelectorAll('select[data-name]')) {
    menu.value = state[menu.dataset.name];
  }
  markZoom();
}

// What the switches say at first: their first option that shows something.
function initial() {
  const isCurve = (t) => (t.meta || {}).kind === 'eval' && t.y.length > 2;
  // Validation losses at the end alone make no curve.
  if (!traces.some(isCurve)) state.kind = 'train';
  for (const group of document.querySelectorAll('[data-name]')) {
    const name = group.dataset.name;
    const first = group.querySelector('button, option');
    if (!(name in state) && name !== 'span' && first) {
      state[name] = first.value || first.dataset.value;
    }
  }
}

function save(name, type, text) {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([text], {type: type}));
  link.download = name;
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

// What a figure is of, and what the switches that it obeys say.
function fileName(id) {
  const figure = figures[id];
  const names = new Set();
  for (const trace of figure.data) {
    Object.keys((trace.meta || {}).when || {}).forEach((n) => names.add(n));
  }
  if (figure.titles) names.add('x');
  const words = [id.replace('plot-', ''), ...Array.from(names, (name) => state[name])];
  return words.join('-').replace(/[^A-Za-z0-9]+/g, '-');
}

async function saveSvg(id) {
  const element = document.getElementById(id);
  const seen = new Set();
  const data = figures[id].data.filter(isShown).map((trace) => {
    const group = trace.legendgroup;
    const first = group && trace.meta.kind !== 'raw' && !seen.has(group);
    if (first) seen.add(group);
    const name = names[group] || trace.name;
    return {...trace, showlegend: Boolean(first), name: first ? name : trace.name};
  });
  const layout = structuredClone(element.layout);
  const room = 26 * Math.ceil(seen.size / Math.max(1, Math.floor(widthOf(id) / 130)));
  layout.margin.t += room;
  layout.height += room;
  layout.showlegend = seen.size > 1;
  layout.legend = {orientation: 'h', x: 0, y: 1, yref: 'container', yanchor: 'top'};
  const size = {format: 'svg', width: widthOf(id), height: layout.height};
  const url = await Plotly.toImage({data: data, layout: layout}, size);
  const text = decodeURIComponent(url.slice(url.indexOf(',') + 1));
  save(fileName(id) + '.svg', 'image/svg+xml', text);
}

function plain(text) {
  const holder = document.createElement('textarea');
  holder.innerHTML = String(text).replace(/<br>/g, ' ').replace(/<\/?b>/g, '');
  return holder.value;
}

// A cell of CSV; no spreadsheet shall take a name for a formula.
function cell(value) {
  if (value === null || value === undefined) return '';
  if (typeof value === 'number') return String(value);
  let text = plain(value);
  if (/^[=+\-@\t\r]/.test(text)) text = "'" + text;
  return /[",\n\r]/.test(text) ? '"' + text.replace(/"/g, '""') + '"' : text;
}

// Every number of a figure, hidden ones too.
function toCsv(id) {
  const figure = figures[id];
  const columns = figure.csv;
  const keys = figure.titles ? Object.keys(figure.titles) : [];
  const heads = ['panel', 'series', 'kind', 'run', 'label'];
  if (figure.titles) heads.push(...keys.map((key) => figure.titles[key]));
  for (const name of ['x', 'y', 'error_x', 'error_y']) {
    if (columns[name]) heads.push(columns[name]);
  }
  const rows = [heads];
  for (const trace of figure.data) {
    const meta = trace.meta || {};
    if (meta.kind === 'chance') continue;
    const panel = figure.layout.meta.titles[panelOf(trace) - 1];
    const kind = meta.quantity || (meta.when || {}).column || meta.kind;
    trace.y.forEach((height, i) => {
      const {hyperparameter, transfer} = meta.when || {};
      const label = meta.labels ? meta.labels[i] : hyperparameter || transfer;
      const row = [panel, trace.name, kind, meta.run, label];
      const all = trace.xs === undefined ? {} : positions[trace.xs];
      row.push(...keys.map((key) => (all[key] || [])[i]));
      if (columns.x) row.push((meta.x || trace.x)[i]);
      if (columns.y) row.push(meta.edge ? null : height);
      for (const name of ['error_x', 'error_y']) {
        if (columns[name]) row.push(((trace[name] || {}).array || [])[i]);
      }
      rows.push(row);
    });
  }
  return rows.map((row) => row.map(cell).join(',') + '\r\n').join('');
}

const names = {};

function listen() {
  for (const button of document.querySelectorAll('.switch button')) {
    const name = button.parentElement.dataset.name;
    button.addEventListener('click', () => onSwitch(name, button.dataset.value));
  }
  for (const menu of document.querySelectorAll('select[data-name]')) {
    const choose = () => onSwitch(menu.dataset.name, menu.value);
    menu.addEventListener('change', choose);
  }
  for (const chip of document.querySelectorAll('.chip')) {
    names[chip.dataset.optimizer] = chip.textContent;
    chip.addEventListener('click', () => onChip(chip));
  }
  for (const button of document.querySelectorAll('.download')) {
    const id = button.dataset.figure;
    button.addEventListener('click', () => {
      if (button.dataset.format === 'svg') return saveSvg(id);
      return save(fileName(id) + '.csv', 'text/csv', '\ufeff' + toCsv(id));
    });
  }
  // What is folded away would not be printed.
  const folded = [];
  addEventListener('beforeprint', () => {
    folded.push(...document.querySelectorAll('details:not([open])'));
    for (const part of folded) part.open = true;
    fit();
  });
  addEventListener('afterprint', () => {
    for (const part of folded.splice(0)) part.open = false;
  });
  addEventListener('hashchange', openTarget);
  document.addEventListener('toggle', fit, true);
  new ResizeObserver(() => requestAnimationFrame(fit)).observe(
    document.getElementById('page')
  );
}

async function unpack() {
  const packed = atob(document.getElementById('plotly').textContent);
  const bytes = Uint8Array.from(packed, (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream();
  const script = document.createElement('script');
  script.textContent = await new Response(
    stream.pipeThrough(new DecompressionStream('gzip'))
  ).text();
  document.head.append(script);
  script.remove();
}

// What a link leads to may be folded away.
function openTarget() {
  const target = document.getElementById(location.hash.slice(1));
  for (let at = target; at; at = at.parentElement) {
    if (at.tagName === 'DETAILS') at.open = true;
  }
}

function draw(id) {
  const config = {displayModeBar: false, showLink: false};
  // On a touch screen a finger scrolls.
  const coarse = matchMedia('(pointer: coarse)').matches;
  const {data, layout} = figures[id];
  data.forEach(place);
  for (const trace of data) trace.visible = isShown(trace);
  const mode = modes(figures[id], widthOf(id));
  const first = data.map((trace, i) => ({...trace, mode: mode[i]}));
  const start = {...structuredClone(layout), width: widthOf(id)};
  start.dragmode = coarse ? false : 'zoom';
  Plotly.newPlot(id, first, start, config);
  Plotly.relayout(id, {
    ...arrange(layout, widthOf(id)),
    ...(figures[id].titles ? frame(id) : limits(figures[id])),
  });
  scale(id);
  drawn.add(id);
  const element = document.getElementById(id);
  if (figures[id].titles) {
    element.on('plotly_relayout', (event) => onZoom(id, event));
  }
}

async function start() {
  initial();
  if (Object.keys(figures).length) {
    if (typeof DecompressionStream === 'undefined') {
      const line = document.createElement('p');
      line.className = 'warning';
      line.textContent = 'The figures need a browser of 2023 or later.';
      document.querySelector('header').append(line);
    } else {
      await unpack();
      linked.forEach((id) => figures[id].data.forEach(place));
      listen();
      openTarget();
      fit();
      markSwitches();
    }
  }
  root.dataset.ready = 'yes';
}

start();
