"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const layers = data.layers, graph = data.couplings;
  const byName = new Map(layers.map((layer, i) => [layer.name, i]));
  const nodeOf = new Map(graph.layers.map((layer, i) => [layer.name, i]));
  const numbers = new Intl.NumberFormat("en-US");
  const charts = {};
  let selected = -1;

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const element = (kind, text, ...children) => {
    const made = document.createElement(kind);
    if (text !== null) made.textContent = text;
    made.append(...children);
    return made;
  };
  const axis = () => ({
    axisLine: { lineStyle: { color: colour("line") } },
    axisLabel: { color: colour("faint") },
    splitLine: { lineStyle: { color: colour("grid") } },
    nameTextStyle: { color: colour("faint") },
  });
  const box = () => ({ backgroundColor: colour("card"), borderColor: colour("line"), textStyle: { color: colour("ink"), fontSize: 13 } });
  const escape = (text) => echarts.format.encodeHTML(String(text));

  function drawn(id, option, click) {
    if (charts[id]) charts[id].dispose();
    const chart = echarts.init(document.getElementById(id), null, { renderer: "canvas" });
    chart.setOption({ animation: false, textStyle: { color: colour("ink") }, ...option });
    if (click) chart.on("click", click);
    charts[id] = chart;
    return chart;
  }

  function widths() {
    const multiplying = layers.filter((layer) => layer.before > 0 && layer.macs_before !== 0);
    const rows = multiplying.length ? multiplying : layers.filter((layer) => layer.before > 0);
    const many = rows.length > 60;
    const bar = (name, key, shade, z) => ({
      name, type: "bar", barGap: "-100%", barCategoryGap: many ? "8%" : "25%", z,
      itemStyle: { color: shade }, data: rows.map((row) => Math.max(row[key], 0)),
    });
    const series = data.slim ? [bar("before", "before", colour("before"), 1), bar("after", "after", colour("after"), 2)]
                             : [bar("channels", "before", colour("after"), 2)];
    drawn("widths", {
      grid: { left: 56, right: 16, top: 30, bottom: many ? 62 : 104 },
      legend: { top: 0, right: 10, textStyle: { color: colour("ink") }, itemWidth: 14, itemHeight: 10 },
      tooltip: { trigger: "axis", axisPointer: { type: "shadow" }, ...box(), formatter: (items) => {
        const row = rows[items[0].dataIndex];
        const after = row.after < 0 ? "" : ` → ${numbers.format(row.after)}`;
        return `<b>${escape(row.name)}</b><br>${escape(row.kind)}: ${numbers.format(row.before)}${after} channels`;
      } },
      xAxis: { type: "category", data: rows.map((row) => row.name), ...axis(), axisTick: { show: false },
        axisLabel: { show: !many, rotate: 40, color: colour("faint"), fontSize: 11, width: 110, overflow: "truncate" } },
      yAxis: { type: "value", name: "channels", ...axis() },
      dataZoom: [{ type: "inside", zoomOnMouseWheel: "ctrl" },
        { type: "slider", height: 20, bottom: 8, borderColor: colour("line"), textStyle: { color: colour("faint") }, labelFormatter: "" }],
      series,
    }, (event) => select(nodeOf.get(rows[event.dataIndex].name)));
  }

  function scores() {
    const chooser = document.getElementById("group");
    const found = data.ranking[Number(chooser.value) || 0];
    const bins = found.kept.length, width = (found.high - found.low) / bins;
    const edges = found.kept.map((_, i) => found.low + width * i);
    const short = (value) => Number(value.toPrecision(3)).toString();
    const bar = (name, counts, shade) => ({ name, type: "bar", stack: "all", barCategoryGap: "6%", itemStyle: { color: shade }, data: counts });
    const kept = bar("stay", found.kept, colour("after"));
    if (found.cut !== null) {
      const place = width > 0 ? Math.min(bins - 1, Math.max(0, (found.cut - found.low) / width - 0.5)) : 0;
      kept.markLine = { symbol: "none", silent: true, lineStyle: { color: colour("mark"), type: "dashed", width: 1.5 },
        label: { formatter: "cut", color: colour("mark") }, data: [{ xAxis: Math.round(place) }] };
    }
    drawn("scores", {
      grid: { left: 56, right: 16, top: 30, bottom: 44 },
      legend: { top: 0, right: 10, textStyle: { color: colour("ink") }, itemWidth: 14, itemHeight: 10 },
      tooltip: { trigger: "axis", axisPointer: { type: "shadow" }, ...box(), formatter: (items) => {
        const i = items[0].dataIndex;
        return `score ${short(edges[i])} to ${short(edges[i] + width)}<br>${found.kept[i]} stay, ${found.removed[i]} go`;
      } },
      xAxis: { type: "category", data: edges.map(short), name: `score (${data.score})`, nameLocation: "middle", nameGap: 28, ...axis() },
      yAxis: { type: "value", name: "coupled channels", nameTextStyle: { color: colour("faint"), align: "left" }, ...axis(), minInterval: 1 },
      series: [bar("go", found.removed, colour("removed")), kept],
    });
    const sum = (list) => list.reduce((a, b) => a + b, 0);
    const gone = sum(found.removed), all = gone + sum(found.kept);
    document.getElementById("cut").textContent =
      `${numbers.format(gone)} of ${numbers.format(all)} coupled channels go` + (found.cut === null ? "" : `; the highest score that goes is ${short(found.cut)}`);
  }

  const state = (layer) => {
    const free = layer.width ? layer.free : layer.reads_free, all = layer.width || layer.reads;
    return free === 0 ? "pinned" : free < all ? "partly" : "free";
  };
  const neighbours = graph.layers.map(() => []);
  for (const [left, right, nodes, channels] of graph.links) {
    neighbours[left].push({ other: right, nodes, channels });
    neighbours[right].push({ other: left, nodes, channels });
  }

  function couplings() {
    const shades = { free: colour("free"), partly: colour("partly"), pinned: colour("pinned") };
    const few = graph.layers.length <= 70;
    const circle = document.getElementById("layout").value === "circular";
    const count = graph.layers.length;
    const bend = (a, b) => 0.3 * Math.min(1, 0.03 + (3 * Math.min(Math.abs(a - b), count - Math.abs(a - b))) / count);
    const widest = Math.max(1, ...graph.layers.map((layer) => layer.width));
    const big = few ? 26 : 14;
    const option = {
      tooltip: { ...box(), formatter: (item) => item.dataType === "edge"
        ? `${escape(graph.layers[item.data.from].name)} – ${escape(graph.layers[item.data.to].name)}<br>${item.data.channels} channels, at ${escape(item.data.nodes.map((n) => graph.nodes[n]).join(", "))}`
        : `<b>${escape(item.name)}</b><br>${neighbours[item.dataIndex].length} couplings` },
      series: [{
        type: "graph", id: "graph", layout: circle ? "circular" : "none", preserveAspect: true, roam: true, scaleLimit: { min: 0.4, max: 20 },
        left: few ? 110 : 30, right: few ? 110 : 30, top: few ? 90 : 30, bottom: few ? 90 : 30,
        circular: { rotateLabel: few },
        draggable: false,
        data: graph.layers.map((layer, i) => ({
          name: layer.name, id: String(i), ...(circle ? {} : { x: graph.places[i][0], y: graph.places[i][1] }),
          symbolSize: (few ? 7 : 4) + big * Math.sqrt(layer.width / widest) * 0.5,
          itemStyle: { color: i === selected ? colour("mark") : shades[state(layer)], borderColor: colour("mark"), borderWidth: i === selected ? 3 : 0 },
          label: { show: few || i === selected, color: colour("ink"), fontSize: i === selected ? 13 : 11, fontWeight: i === selected ? "bold" : "normal", textBorderColor: colour("card"), textBorderWidth: 3 },
        })),
        links: graph.links.map(([left, right, nodes, channels]) => ({ source: String(left), target: String(right), from: left, to: right, nodes, channels,
          lineStyle: { curveness: circle ? bend(left, right) : 0, ...(left === selected || right === selected ? { color: colour("mark"), width: 2, opacity: 0.9 } : {}) } })),
        label: { position: few ? "right" : "top", formatter: "{b}" },
        lineStyle: { color: colour("faint"), width: 0.8, opacity: graph.links.length > 800 ? 0.22 : 0.45 },
        emphasis: { focus: "adjacency", label: { show: true, color: colour("ink") }, lineStyle: { width: 2, opacity: 0.9 } },
        blur: { itemStyle: { opacity: 0.25 }, lineStyle: { opacity: 0.05 } },
      }],
    };
    drawn("couplings", option, (event) => { if (event.dataType === "node") select(event.dataIndex); });
  }

  function link(i) {
    const made = element("a", graph.layers[i].name);
    made.addEventListener("click", () => select(i));
    return made;
  }

  function panel(i) {
    const layer = graph.layers[i], row = layers[byName.get(layer.name)];
    const parts = [element("h3", layer.name)];
    if (row) {
      const change = (a, b) => (b < 0 ? numbers.format(a) : a < 0 ? numbers.format(b) : a === b ? numbers.format(a) : `${numbers.format(a)} → ${numbers.format(b)}`);
      const table = element("table", null);
      for (const [name, a, b] of [["channels", row.before, row.after], ["parameters", row.parameters_before, row.parameters], ["MACs", row.macs_before, row.macs]])
        table.append(element("tr", null, element("td", name), Object.assign(element("td", change(a, b)), { className: "n" })));
      parts.push(element("small", row.kind), table);
    }
    const sides = [];
    if (layer.width) sides.push(`${layer.free} of ${layer.width} channels that it makes can go`);
    if (layer.reads) sides.push(`${layer.reads_free} of ${layer.reads} channels that it reads can go`);
    parts.push(element("p", sides.join("; ") + "."));
    if (layer.pins.length) {
      const list = element("ul", null);
      for (const pin of layer.pins) list.append(element("li", null, `${pin.channels} channels at `, element("code", pin.node), `: ${pin.reason}`));
      parts.push(element("h4", "stays because"), list);
    }
    const near = neighbours[i], direct = new Set(near.map((n) => n.other)), list = element("ul", null);
    for (const { other, nodes, channels } of near)
      list.append(element("li", null, link(other), element("small", ` ${channels} channels, at ${nodes.map((n) => graph.nodes[n]).join(", ")}`)));
    parts.push(element("h4", near.length ? `coupled with (${near.length})` : "coupled with nothing"), list);
    const own = new Set(layer.groups);
    const others = graph.layers.map((_, k) => k).filter((k) => k !== i && !direct.has(k) && graph.layers[k].groups.some((g) => own.has(g)));
    if (others.length) {
      const through = element("ul", null);
      for (const k of others) through.append(element("li", null, link(k)));
      parts.push(element("h4", `and through these with (${others.length})`), through);
    }
    if (data.ranking.length > 1 && layer.groups.length) {
      const names = layer.groups.map((g) => data.ranking.findIndex((h) => h.index === g)).filter((k) => k > 0);
      if (names.length) {
        const show = element("a", "scores of its channels");
        show.addEventListener("click", () => { document.getElementById("group").value = String(names[names.length - 1]); scores(); document.getElementById("scores-section").scrollIntoView({ block: "nearest" }); });
        parts.push(element("p", null, show));
      }
    }
    const place = document.getElementById("layer");
    place.replaceChildren(...parts);
    place.scrollTop = 0;
  }

  function select(i) {
    if (i === undefined || i < 0) return;
    const before = charts.couplings.getOption().series[0];
    selected = i;
    panel(i);
    couplings();
    charts.couplings.setOption({ series: [{ id: "graph", zoom: before.zoom, center: before.center }] });
  }

  function search(text) {
    const wanted = text.trim().toLowerCase();
    const hits = wanted ? graph.layers.map((_, i) => i).filter((i) => graph.layers[i].name.toLowerCase().includes(wanted)) : [];
    document.getElementById("found").textContent = wanted ? `${hits.length} found` : "";
    const exact = hits.find((i) => graph.layers[i].name.toLowerCase() === wanted);
    if (exact !== undefined || hits.length === 1) select(exact ?? hits[0]);
    else if (hits.length) charts.couplings.dispatchAction({ type: "highlight", seriesIndex: 0, dataIndex: hits, notBlur: false });
    else charts.couplings.dispatchAction({ type: "downplay", seriesIndex: 0 });
    return hits;
  }

  function all() {
    widths();
    if (data.ranking.length) scores();
    couplings();
  }

  if (graph.links.length < 2 * graph.layers.length) document.getElementById("layout").value = "springs";
  const chooser = document.getElementById("group");
  data.ranking.forEach((histogram, i) => chooser.append(Object.assign(element("option", histogram.group || "all groups"), { value: String(i) })));
  chooser.addEventListener("change", scores);
  if (!data.ranking.length) document.getElementById("scores-section").hidden = true;
  document.getElementById("names").append(...graph.layers.map((layer) => Object.assign(document.createElement("option"), { value: layer.name })));
  const field = document.getElementById("search");
  field.addEventListener("input", () => search(field.value));
  field.addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    const hits = search(field.value);
    if (hits.length) select(hits[0]);
  });
  document.getElementById("layout").addEventListener("change", couplings);
  document.getElementById("theme").addEventListener("click", () => {
    const root = document.documentElement;
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    all();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", all);
  addEventListener("resize", () => Object.values(charts).forEach((chart) => chart.resize()));
  all();
})();
