"""The page that the server shows to a person who wants to try the model: one file, nothing from the network."""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>adasearch</title>
<style>
  :root { color-scheme: light dark; }
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 44rem; margin: 2rem auto; padding: 0 1rem; }
  textarea { width: 100%; min-height: 7rem; font: inherit; padding: .5rem; box-sizing: border-box; }
  button { font: inherit; padding: .4rem 1.2rem; margin: .5rem 0; }
  table { border-collapse: collapse; width: 100%; }
  td, th { text-align: left; padding: .3rem .6rem .3rem 0; border-bottom: 1px solid #8886; overflow-wrap: break-word; }
  td:first-child { overflow-wrap: anywhere; }
  small, #facts { opacity: .75; }
  #error { color: #c33; }
</style>
</head>
<body>
<h1>Try the model</h1>
<p id="facts">&nbsp;</p>
<form id="form">
  <label for="texts">One text a line; of a pair, a tab between the two.</label>
  <textarea id="texts" required autofocus></textarea>
  <button>Predict</button> <small id="time"></small>
</form>
<p id="error" role="alert"></p>
<table id="answers"></table>
<script>
const at = id => document.getElementById(id);
const add = (row, tag, text) => row.appendChild(document.createElement(tag)).textContent = text;
fetch("health").then(reply => reply.json()).then(facts => {
  at("facts").textContent = `${facts.model}: ${facts.runtime} ${facts.precision}, ${facts.threads} thread(s); ` +
    (facts.labels.length ? facts.labels.join(", ") : "a score");
});
at("form").addEventListener("submit", async event => {
  event.preventDefault();
  const lines = at("texts").value.split("\\n").filter(line => line.trim()).map(line => line.split("\\t"));
  const request = {texts: lines.map(line => line[0])};
  if (lines.some(line => line.length > 1)) request.pairs = lines.map(line => line[1] ?? "");
  at("error").textContent = "";
  at("answers").replaceChildren();
  const start = performance.now();
  try {
    const reply = await fetch("predict", {
      method: "POST", headers: {"content-type": "application/json"}, body: JSON.stringify(request)});
    const data = await reply.json();
    at("time").textContent = `${(performance.now() - start).toFixed(1)} ms`;
    if (!reply.ok) throw new Error(typeof data.detail === "string" ? data.detail : JSON.stringify(data.detail));
    data.predictions.forEach((answer, index) => {
      const row = at("answers").insertRow();
      add(row, "td", lines[index].join(" | "));
      add(row, "th", answer.label ?? answer.score.toFixed(3));
      add(row, "td", Object.entries(answer.probabilities ?? {})
        .map(([label, share]) => `${label} ${(100 * share).toFixed(1)}%`).join(", "));
      if (answer.answered_by) add(row, "td", answer.answered_by);
    });
  } catch (error) {
    at("error").textContent = error.message;
  }
});
</script>
</body>
</html>
"""
