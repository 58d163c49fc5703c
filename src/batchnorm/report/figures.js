const dark = matchMedia("(prefers-color-scheme: dark)");
function themed() {
  const style = getComputedStyle(document.documentElement);
  const read = name => style.getPropertyValue(name).trim();
  return { ink: read("--ink"), soft: read("--soft"), line: read("--line"), panel: read("--panel") };
}
function dress(layout) {
  const t = themed(), out = structuredClone(layout);
  out.font = { color: t.soft, size: 13, family: "system-ui, sans-serif" };
  out.legend = { ...out.legend, font: { color: t.ink } };
  out.hoverlabel = { bgcolor: t.panel, bordercolor: t.line, font: { color: t.ink } };
  for (const key of Object.keys(out)) if (/^[xy]axis/.test(key))
    Object.assign(out[key], { gridcolor: t.line, zerolinecolor: t.line, linecolor: t.line });
  for (const note of out.annotations || []) note.font = { ...note.font, color: t.ink };
  return out;
}
function painted(data) {
  return dark.matches ? JSON.parse(JSON.stringify(data).replace(/#[0-9a-f]{6}/g, color => DARK[color] ?? color)) : data;
}
function draw() {
  for (const [id, figure] of Object.entries(FIGURES))
    Plotly.react(id, painted(figure.data), dress(figure.layout), { responsive: true, displaylogo: false, displayModeBar: false });
}
draw();
dark.addEventListener("change", draw);
