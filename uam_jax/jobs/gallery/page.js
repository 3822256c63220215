"use strict";
// The page: its state is in the address, so that a link leads to what its sender saw.

{
  const hasConfidence = (rows.columns.confidence || []).some((value) => value !== null);
  const START = {
    q: "", show: "all", sort: hasConfidence ? "confidence" : "order", down: false, top: true, per: 24, page: 1,
    view: "compare", gain: 4, open: "",
  };
  // A change of one of these leads back to the first page, since it changes the rows or their order.
  const SELECTS = ["q", "show", "sort", "down", "top", "per"];
  const PERS = [24, 48, 96];
  const GAINS = [1, 4, 16];

  const byId = (id) => document.getElementById(id);
  const count = (number) => number.toLocaleString("en");
  const keys = sortKeys();
  const failures = (rows.columns.failed || []).reduce((sum, failed) => sum + failed, 0);
  const reviews = (rows.columns.review || []).reduce((sum, why, i) => sum + (why && !rows.columns.failed[i] ? 1 : 0), 0);
  // Views that not every job has pictures for.
  const hasView = Object.fromEntries(
    ["answer", "error"].map((name) => [name, (rows.columns[name] || []).some(Boolean)]),
  );

  let state = { ...START };
  let found = [];
  let foundFor = "";
  let shownFor = "";

  // ---- state and address

  function stateFromHash() {
    const given = new URLSearchParams(location.hash.slice(1));
    const next = { ...START };
    for (const [name, start] of Object.entries(START)) {
      const value = given.get(name);
      if (value === null) continue;
      if (typeof start === "boolean") next[name] = value === "1";
      else if (typeof start === "number") next[name] = Math.trunc(Number(value)) || start;
      else next[name] = value;
    }
    if (!["all", "ok", "review", "failed"].includes(next.show)) next.show = START.show;
    if (!keys.some(({ key }) => key === next.sort)) next.sort = START.sort;
    if (!PERS.includes(next.per)) next.per = START.per;
    if (!GAINS.includes(next.gain)) next.gain = START.gain;
    if (!Object.hasOwn(PICTURES, next.view)) next.view = START.view;
    if (hasView[next.view] === false) next.view = START.view;
    return next;
  }

  function hashOfState() {
    const given = new URLSearchParams();
    for (const [name, start] of Object.entries(START)) {
      const value = state[name];
      if (value !== start) given.set(name, typeof value === "boolean" ? Number(value) : value);
    }
    return given.toString();
  }

  /** Changes the state, the address and the page. A step back in the browser undoes a `step`. */
  function go(changes, { step = true } = {}) {
    if (SELECTS.some((name) => name in changes)) state.page = 1;
    Object.assign(state, changes);
    show();
    const hash = "#" + hashOfState();
    if (hash === (location.hash || "#")) return;
    if (step) location.hash = hash;
    else location.replace(hash);
  }

  window.addEventListener("hashchange", () => {
    const before = hashOfState();
    state = stateFromHash();
    if (hashOfState() !== before) show();
  });

  // ---- rows on the page

  function show() {
    const selection = JSON.stringify(SELECTS.map((name) => state[name]));
    if (selection !== foundFor) {
      found = findRows(state);
      foundFor = selection;
      shownFor = "";
    }
    const pages = Math.max(1, Math.ceil(found.length / state.per));
    state.page = Math.min(Math.max(1, state.page), pages);
    const first = (state.page - 1) * state.per;
    const part = found.slice(first, first + state.per);
    if (shownFor !== `${selection} ${state.page}`) {
      shownFor = `${selection} ${state.page}`;
      byId("cards").replaceChildren(...makeCards(part));
    }
    document.querySelectorAll("#cards .stage").forEach((stage) => dressStage(stage, state.view, state.gain));
    showTools(first, part.length, pages);
    showLarge();
  }

  function showTools(first, length, pages) {
    // Not while someone types: the cursor would jump.
    if (byId("search").value !== state.q) byId("search").value = state.q;
    byId("sort").value = state.sort;
    byId("per").value = state.per;
    byId("top").checked = state.top;
    byId("gain").value = state.gain;
    byId("gain").hidden = state.view !== "difference";
    const direction = state.down ? "Descending" : "Ascending";
    byId("down").textContent = state.down ? "↓" : "↑";
    byId("down").setAttribute("aria-label", `${direction}; press to reverse`);
    byId("down").title = direction;
    for (const button of document.querySelectorAll("[data-key]")) {
      button.setAttribute("aria-pressed", state[button.dataset.key] === button.dataset.value);
    }
    const range = length ? `${count(first + 1)}–${count(first + length)} of ` : "";
    const all = found.length === rows.count ? "" : ` found (${count(rows.count)} in all)`;
    byId("summary").textContent = `${range}${count(found.length)} row${found.length === 1 ? "" : "s"}${all}`;
    byId("empty").hidden = found.length > 0;
    byId("empty").firstElementChild.textContent = rows.count ? "No row matches." : "The job has no rows yet.";
    byId("empty").lastElementChild.hidden = !rows.count;
    for (const pager of document.querySelectorAll(".pager")) showPager(pager, pages);
  }

  function showPager(pager, pages) {
    pager.hidden = pages === 1;
    const input = pager.querySelector("input");
    input.max = pages;
    input.value = state.page;
    pager.querySelector("span").textContent = `of ${count(pages)}`;
    for (const button of pager.querySelectorAll("button")) {
      const back = ["first", "previous"].includes(button.dataset.to);
      button.disabled = back ? state.page === 1 : state.page === pages;
    }
  }

  // ---- cards

  function makeCards(numbers) {
    const shown = numbers.map(rowAt);
    // One shape for all stages of a page keeps the cards in line.
    const ratios = shown.map((row) => row.width / row.height).sort((a, b) => a - b);
    const ratio = Math.min(Math.max(ratios[Math.floor(ratios.length / 2)] || 1, 0.75), 1.8);
    byId("cards").style.setProperty("--stage", ratio);
    return shown.map((row) => {
      const card = fromTemplate("card-template").firstElementChild;
      const open = () => go({ open: row.id });
      card.prepend(makeStage(row, open));
      card.classList.toggle("failed", row.failed === 1);
      card.classList.toggle("review", !row.failed && Boolean(row.review));
      fill(card, row);
      const target = card.querySelector(".target");
      target.addEventListener("click", open);
      card.querySelector(".text").addEventListener("click", (event) => {
        // A click that marks a text is meant to copy it.
        if (event.target !== target && getSelection().isCollapsed) open();
      });
      const name = card.querySelector(".name");
      name.textContent = row.image && row.image !== row.id ? `${row.id} · ${row.image}` : row.id;
      name.title = name.textContent;
      // A failure has no figures; where an edit lacks one, that is worth a dash.
      const figures = row.failed ? [] : row.figures.map(([label, value]) => [label, figure(value)]);
      if (known(row.mask_share)) figures.unshift(["mask", percent(row.mask_share)]);
      if (known(row.confidence)) figures.unshift(["confidence", percent(row.confidence)]);
      if (known(row.seconds)) figures.push(["time", duration(row.seconds)]);
      list(card.querySelector("dl"), figures);
      return card;
    });
  }

  /** The texts that a card and the large view have in common. */
  function fill(element, row) {
    element.querySelector(".target, h2").textContent = row.target || row.id;
    const reason = element.querySelector(".reason");
    reason.hidden = !row.failed && !row.review;
    reason.textContent = row.failed ? row.reason || "failed, without a reason" : row.review;
  }

  function list(element, entries) {
    element.replaceChildren(
      ...entries.map(([label, value]) => {
        const item = document.createElement("div");
        const [term, text] = [document.createElement("dt"), document.createElement("dd")];
        [term.textContent, text.textContent, text.dir] = [label, value, "auto"];
        item.append(term, text);
        return item;
      }),
    );
  }

  const known = (value) => value !== null && value !== undefined;
  const figure = (value, digits = 4) => (known(value) ? String(Number(value.toPrecision(digits))) : "–");
  const percent = (value) => (known(value) ? `${figure(100 * value, 3)} %` : "–");
  const duration = (value) => (known(value) ? `${figure(value, 3)} s` : "–");

  // ---- the large view

  const large = byId("large");

  function showLarge() {
    const number = state.open === "" ? -1 : (rows.columns.id || []).indexOf(state.open);
    if (number < 0) {
      state.open = "";
      if (large.open) large.close();
      return;
    }
    let stage = byId("picture").firstElementChild;
    if (!stage || stage.row.number !== number) {
      stage = makeStage(rowAt(number), null);
      byId("picture").replaceChildren(stage);
      describe(stage.row);
    }
    dressStage(stage, state.view, state.gain);
    const place = found.indexOf(number);
    byId("place").textContent =
      place < 0 ? "not among the rows found" : `${count(place + 1)} of ${count(found.length)}`;
    byId("previous").disabled = place <= 0;
    byId("next").disabled = place === found.length - 1;
    if (!large.open) {
      large.showModal();
      // On the dialog itself, so that the arrow keys are free to move between rows.
      large.focus();
    }
    for (const near of [place + 1, place - 1]) {
      if (place < 0 || found[near] === undefined) continue;
      const { preview, shown, output } = rowAt(found[near]);
      for (const path of [preview, shown || output]) if (path) new Image().src = path;
    }
  }

  function describe(row) {
    large.classList.toggle("failed", row.failed === 1);
    large.classList.toggle("review", !row.failed && Boolean(row.review));
    fill(large, row);
    const entries = [["source prompt", row.source || "–"], ["image", row.image || "–"], ["id", row.id]];
    entries.push(["status", row.failed ? "failed" : "ok"], ["size", row.size || "–"]);
    if (row.crop) entries.push(["crop: top, left, height, width", row.crop]);
    if (known(row.confidence)) entries.push(["confidence", percent(row.confidence)]);
    entries.push(["mask share", percent(row.mask_share)], ["time", duration(row.seconds)]);
    for (const [label, value] of row.figures) entries.push([label, figure(value)]);
    list(large.querySelector("dl"), entries);
    const files = { Original: row.preview, Edit: row.output, Mask: row.mask, "Error map": row.error, "Exact answer": row.answer };
    const links = Object.entries(files).filter(([, path]) => path);
    large.querySelector(".files").replaceChildren(
      ...links.map(([label, path]) => {
        const link = document.createElement("a");
        link.textContent = label;
        link.href = path;
        link.target = "_blank";
        link.rel = "noopener";
        return link;
      }),
    );
  }

  /** Opens the row after or before this one; the page behind follows. */
  function step(by) {
    const place = found.indexOf(byId("picture").firstElementChild.row.number) + by;
    if (place < 0 || place >= found.length) return;
    const page = Math.floor(place / state.per) + 1;
    go({ open: rows.columns.id[found[place]], page }, { step: false });
  }

  large.addEventListener("keydown", (event) => {
    if (event.target.matches("input, select") || event.ctrlKey || event.altKey || event.metaKey) return;
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!by) return;
    event.preventDefault();
    step(by);
  });
  large.addEventListener("click", (event) => event.target === large && large.close());
  large.addEventListener("close", () => {
    const number = byId("picture").firstElementChild?.row.number;
    byId("picture").replaceChildren();
    if (state.open !== "") go({ open: "" }, { step: false });
    const stages = [...document.querySelectorAll("#cards .stage")];
    const stage = stages.find(({ row }) => row.number === number);
    stage?.parentElement.querySelector(".target").focus();
  });
  byId("previous").addEventListener("click", () => step(-1));
  byId("next").addEventListener("click", () => step(1));
  byId("close").addEventListener("click", () => large.close());

  // ---- tools

  function begin() {
    byId("sort").replaceChildren(...keys.map(({ key, label }) => new Option(label, key)));
    for (const [name, has] of Object.entries(hasView)) {
      document.querySelector(`[data-value="${name}"]`).hidden = !has;
    }
    large.querySelector(".choice").append(
      ...[...document.querySelectorAll(".views [data-key]")].map((button) => button.cloneNode(true)),
    );
    const counts = { all: rows.count, ok: rows.count - failures, review: reviews, failed: failures };
    for (const button of document.querySelectorAll("[data-key]")) {
      const { key, value } = button.dataset;
      if (key === "show") button.querySelector("span").textContent = count(counts[value]);
      if (value === "review") button.hidden = !reviews;
      button.addEventListener("click", () => go({ [key]: value }));
    }
    byId("top").parentElement.hidden = !failures && !reviews;
    for (const pager of document.querySelectorAll(".pager")) beginPager(pager);

    let timer = 0;
    byId("search").addEventListener("input", () => {
      clearTimeout(timer);
      timer = setTimeout(() => go({ q: byId("search").value }, { step: false }), 60);
    });
    byId("tools").addEventListener("submit", (event) => event.preventDefault());
    byId("sort").addEventListener("change", () => go({ sort: byId("sort").value }));
    byId("down").addEventListener("click", () => go({ down: !state.down }));
    byId("top").addEventListener("change", () => go({ top: byId("top").checked }));
    byId("per").addEventListener("change", () => go({ per: Number(byId("per").value) }));
    byId("gain").addEventListener("change", () => go({ gain: Number(byId("gain").value) }));
    byId("empty").lastElementChild.addEventListener("click", () => go({ q: "", show: "all" }));
  }

  function beginPager(pager) {
    pager.append(fromTemplate("pager-template"));
    const turn = (page) => {
      go({ page });
      byId("tools").scrollIntoView({ block: "start" });
    };
    pager.querySelector("input").addEventListener("change", (event) => {
      turn(Math.trunc(event.target.value) || state.page);
    });
    pager.addEventListener("click", ({ target }) => {
      const last = Math.ceil(found.length / state.per);
      const pages = { first: 1, previous: state.page - 1, next: state.page + 1, last };
      if (target.dataset.to) turn(pages[target.dataset.to]);
    });
  }

  const expected = Number(document.body.dataset.rows);
  if (rows.count !== expected) {
    byId("alert").hidden = false;
    byId("alert").textContent =
      `Only ${count(rows.count)} of ${count(expected)} rows could be read: ` +
      "the folder “gallery” beside this page must be complete and as new as the page.";
  }
  begin();
  state = stateFromHash();
  show();
  performance.mark("first page");
  const idle = window.requestIdleCallback || ((work) => setTimeout(work, 200));
  idle(searchTexts);
}
