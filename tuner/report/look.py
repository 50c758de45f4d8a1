"""How the page of a comparison looks, and the script that draws its plots in the reader's colours."""

from __future__ import annotations

from string import Template

__all__ = ["DRAW", "PAGE", "STYLE"]

PAGE = Template(
    """<!DOCTYPE html>
<html lang="en"$refresh>
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="$policy">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>$style</style>
</head>
<body>
<main>
$body

</main>
$scripts
</body>
</html>
"""
)

STYLE = Template(
    """
:root { $light }
@media (prefers-color-scheme: dark) { :root { $dark } }
.verdict { margin: 0 0 1.75rem; max-width: 44rem; font-size: clamp(1.1rem, 3vw, 1.3rem); line-height: 1.45; }
.arm { white-space: nowrap; }
.dot { display: inline-block; width: .62em; height: .62em; margin-right: .5em; border-radius: 50%; }
.strip { vertical-align: middle; stroke: currentColor; fill: currentColor; }
.strip line { stroke-width: 5; stroke-opacity: .35; stroke-linecap: round; }
.strip circle { stroke: none; }
.dot { background: currentColor; }
.arm0 { color: var(--arm0); } .arm1 { color: var(--arm1); } .arm2 { color: var(--arm2); } .arm3 { color: var(--arm3); }
.arm4 { color: var(--arm4); } .arm5 { color: var(--arm5); } .arm6 { color: var(--arm6); } .arm7 { color: var(--arm7); }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1.5rem; }
.plots.wide { grid-template-columns: 1fr; }
.plot { min-width: 0; width: 100%; }
.note + .scroll { margin-top: 1.5rem; }
.diagnoses { margin: 1rem 0 0; font-size: .9rem; }
.diagnoses > div { display: grid; grid-template-columns: minmax(8rem, auto) 1fr; gap: 1rem; padding: .25rem 0; }
.diagnoses dt { font-weight: 600; }
.diagnoses dd { margin: 0; max-width: 52rem; }
@media (max-width: 46rem) {
  .diagnoses > div { display: block; }
  tbody td:is([data-label^="median"], [data-label^="P("], [data-label^="test_"], [data-label^="best dev"]) {
    grid-column: span 2;
  }
}
@media print { section { break-inside: avoid; } details { display: none; } }
"""
)

DRAW = """
"use strict";
(() => {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const touch = matchMedia("(pointer: coarse)");
  const read = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const shade = (hex, opacity) => `rgba(${[1, 3, 5].map(i => parseInt(hex.slice(i, i + 2), 16))}, ${opacity})`;
  const figures = [...document.querySelectorAll(".plot")].map(
    place => [place, place.nextElementSibling.textContent]);

  function coloured(trace) {
    const colour = read(trace.meta.colour);
    if (trace.line) trace.line.color = colour;
    if (trace.marker) trace.marker.color = colour;
    if (trace.error_x) trace.error_x.color = colour;
    if (trace.fillcolor) trace.fillcolor = shade(colour, trace.meta.opacity);
    return trace;
  }

  function axis(given) {
    const line = read("--line"), soft = read("--soft");
    const title = {...given.title, font: {color: soft}, standoff: 8};
    return {automargin: true, gridcolor: line, linecolor: line, zeroline: false, tickfont: {color: soft},
            fixedrange: touch.matches, ...given, title};
  }

  function dressed(layout) {
    const ink = read("--ink"), paper = read("--paper"), line = read("--line");
    return {
      ...layout,
      xaxis: axis(layout.xaxis), yaxis: axis(layout.yaxis),
      font: {family: "system-ui, sans-serif", size: 13, color: ink},
      hoverlabel: {bgcolor: paper, bordercolor: line, font: {color: ink}},
      paper_bgcolor: "rgba(0, 0, 0, 0)", plot_bgcolor: "rgba(0, 0, 0, 0)",
      modebar: {bgcolor: "rgba(0, 0, 0, 0)", color: line, activecolor: ink},
      margin: {l: 8, r: 12, t: 12, b: 8}, uirevision: "kept",
      dragmode: touch.matches ? false : "zoom",
    };
  }

  const config = {
    responsive: true, displaylogo: false, displayModeBar: touch.matches ? false : "hover",
    modeBarButtons: [["toImage", "resetScale2d"]], plotlyServerURL: "",
  };

  function draw() {
    for (const [place, text] of figures) {
      const figure = JSON.parse(text);
      Plotly.react(place, figure.data.map(coloured), dressed(figure.layout), config);
    }
  }

  dark.addEventListener("change", draw);
  draw();
  const refresh = Number(document.documentElement.dataset.refresh);
  if (refresh) setTimeout(() => location.reload(), 1000 * refresh);
})();
"""
