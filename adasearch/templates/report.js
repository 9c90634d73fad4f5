// Sorting, filtering and copying. The page says everything without this script; nothing here talks to a network.
"use strict";
document.documentElement.classList.add("js");

for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const isNumber = head.dataset.kind === "number";
    const before = head.getAttribute("aria-sort");
    const direction = before ? (before === "ascending" ? "descending" : "ascending") : isNumber ? "descending" : "ascending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", direction);
    const sign = direction === "ascending" ? 1 : -1;
    const key = (row) => row.cells[column].dataset.value;
    const rows = [...table.tBodies[0].rows];
    rows.sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === undefined || y === undefined) return (x === undefined) - (y === undefined); // unknown ones stay last
      return sign * (isNumber ? Number(x) - Number(y) : x.localeCompare(y));
    });
    table.tBodies[0].append(...rows);
  }));
}

const examples = document.querySelector("#examples");
if (examples) {
  const items = [...examples.querySelectorAll("li")];
  const search = document.querySelector("#contains");
  const count = document.querySelector("#shown");
  const more = document.querySelector("#more");
  const first = 8; // examples shown before one asks for more
  let isWhole = false;
  const update = () => {
    const who = document.querySelector("input[name=right]:checked").value;
    const words = search.value.trim().toLocaleLowerCase();
    let found = 0;
    for (const item of items) {
      const fits = (who === "all" || item.dataset.right === who) && item.textContent.toLocaleLowerCase().includes(words);
      found += fits;
      item.hidden = !fits || (!isWhole && found > first);
    }
    const hidden = isWhole ? 0 : Math.max(0, found - first);
    more.hidden = hidden === 0;
    more.textContent = `Show ${hidden} more`;
    count.textContent = `${found - hidden} of ${items.length} examples`;
  };
  document.querySelectorAll("input[name=right]").forEach((input) => input.addEventListener("change", update));
  search.addEventListener("input", update);
  more.addEventListener("click", () => { isWhole = true; update(); });
  update();
}

for (const button of document.querySelectorAll("button.copy")) {
  button.addEventListener("click", async () => {
    const code = button.parentElement.querySelector("code");
    let isCopied = true;
    try {
      await navigator.clipboard.writeText(code.textContent);
    } catch { // no permission, or an old browser: select it, so that one key copies it
      getSelection().selectAllChildren(code);
      isCopied = false;
    }
    button.textContent = isCopied ? "Copied" : "Selected";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
}
