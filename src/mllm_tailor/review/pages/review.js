"use strict";
// The review page. The server keeps the truth: what is shown after a decision is what it has answered.
(() => {
  const RENEW_EVERY = 60000; // milliseconds between signs of life
  const $ = (id) => document.getElementById(id);
  const make = (tag, properties = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
      if (name.includes("-") || name === "for") element.setAttribute(name, value);
      else if (name === "path") element.dataset.path = value;
      else element[name] = value;
    }
    element.append(...children);
    return element;
  };

  // --- Who works, and what the server knows ---------------------------------------------------------------------------

  const random = () => [...crypto.getRandomValues(new Uint8Array(12))].map((byte) => byte.toString(16).padStart(2, "0"));
  const session = sessionStorage.getItem("session") || random().join("");
  sessionStorage.setItem("session", session);
  let reviewer = localStorage.getItem("reviewer") || "";
  let form = null; // schema, kinds, blank rows
  let doc = null; // the document, as the server states it
  let drafts = {}; // typed and not kept, by path
  let zoom = 1;
  let queue = Promise.resolve(); // one request after the other

  async function ask(path, body = {}) {
    let response;
    try {
      response = await fetch(`/api/${path}`, {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify({ session, reviewer, ...body }),
      });
    } catch {
      throw new Error("Not saved: the server cannot be reached. Try again.");
    }
    const answer = await response.json().catch(() => ({}));
    if (response.status === 409) {
      const error = new Error(answer.problem);
      error.conflict = true;
      throw error;
    }
    if (!response.ok) throw new Error(answer.problem || `The server refused (${response.status}).`);
    return answer;
  }

  const inTurn = (work) => {
    queue = queue.then(work)
      .catch((error) => (error.conflict ? conflict(error) : problem(error.message)))
      .catch((error) => problem(error.message));
    return queue;
  };

  async function conflict(error) {
    show(await ask("take"));
    problem(error.message);
  }

  function problem(text) {
    $("problem").textContent = text;
    $("problem").hidden = !text;
    if (text && $("work").hidden) $("progress").textContent = text;
  }

  // --- Time spent on a value ------------------------------------------------------------------------------------------

  const spent = {};
  let watched = null;
  let since = 0;
  function watch(path) {
    if (watched !== null) spent[watched] = (spent[watched] || 0) + performance.now() - since;
    watched = path;
    since = performance.now();
  }
  function secondsOf(path) {
    watch(watched);
    const seconds = (spent[path] || 0) / 1000;
    delete spent[path];
    return Math.round(seconds * 10) / 10;
  }

  // --- Values and texts -----------------------------------------------------------------------------------------------

  const asText = (value) => (value === null || value === undefined ? "" : String(value));
  const plainType = (schema) => (Array.isArray(schema.type) ? schema.type[0] : schema.type);
  function asValue(text, schema) {
    const type = plainType(schema);
    if (type === "boolean") return text === "" ? null : text === "true";
    if (type !== "number" && type !== "integer") return text;
    if (text.trim() === "") return null;
    return Number.isFinite(Number(text)) ? Number(text) : text;
  }
  function schemaAt(path) {
    let schema = form.schema;
    for (const key of path.split(".")) schema = schema.type === "array" ? schema.items : schema.properties[key];
    return schema;
  }
  const kindAt = (path) => form.kinds[path.replace(/\.\d+(?=\.|$)/g, "")];
  const inputs = () => [...document.querySelectorAll("[data-path]")];
  const inputOf = (path) => inputs().find((element) => element.dataset.path === path);
  const isLeft = (path) => doc.left.includes(path);

  // --- The form -------------------------------------------------------------------------------------------------------

  function stateOf(path) {
    const { decided, eye, confidence } = doc.values[path];
    const share = confidence === null || confidence === undefined ? "" : ` · ${Math.round(confidence * 100)} %`;
    if (decided === "confirm") return "confirmed";
    if (decided === "correct") return "corrected";
    if (decided) return "entered";
    const lost = eye && doc.where[path] && !doc.where[path].length && asText(doc.values[path].value);
    return (eye ? "look" : "accepted") + (doc.calibrated ? share : "") + (lost ? " · not found on the page" : "");
  }

  function entry(path, label) {
    const schema = schemaAt(path);
    const kind = kindAt(path) || plainType(schema);
    const text = path in drafts ? drafts[path] : asText(doc.values[path].value);
    let field;
    if (schema.enum || kind === "boolean") {
      const options = schema.enum ? schema.enum.map(String) : ["", "true", "false"];
      if (!options.includes(text)) options.unshift(text);
      const words = { true: "yes", false: "no", "": "(empty)" };
      field = make("select", {}, ...options.map((option) =>
        make("option", { value: option, textContent: kind === "boolean" || !option ? words[option] : option })));
      field.value = text;
    } else if (text.includes("\n") || (schema.type === "string" && !schema.maxLength && !schema.pattern)) {
      field = make("textarea", { value: text });
    } else {
      field = make("input", { value: text, autocomplete: "off", spellcheck: false });
      if (schema.maxLength) field.maxLength = schema.maxLength;
      if (["amount", "number", "integer"].includes(kind)) {
        field.inputMode = "decimal";
        field.className = "amount";
      }
      if (kind === "date" && schema.pattern) field.placeholder = "YYYY-MM-DD";
    }
    field.id = `field-${path}`;
    field.dataset.path = path;
    field.tabIndex = isLeft(path) ? 0 : -1;
    if (label) field.setAttribute("aria-label", label);
    field.setAttribute("aria-describedby", `state-${path}`);
    field.addEventListener("input", () => keepDraft(path, field.value));
    const keep = make("button", { type: "button", tabIndex: -1, textContent: "✓", "aria-label": `Confirm ${path}` });
    keep.addEventListener("click", () => commit(path));
    return make("div", { className: "entry" }, field, ...(isLeft(path) || path in drafts ? [keep] : []));
  }

  const classOf = (path) =>
    `${isLeft(path) ? "left" : doc.values[path].decided ? "decided" : ""}${path in drafts ? " draft" : ""}`;
  const state = (path) => make("span", { className: "state", id: `state-${path}`, textContent: stateOf(path) });

  function candidatesOf(path) {
    const values = [doc.values[path].value, doc.values[path].read, ...(doc.candidates[path] || [])].map(asText);
    return [...new Set(values)];
  }

  function choices(path) {
    const texts = candidatesOf(path);
    if (texts.length < 2 || !isLeft(path)) return [];
    const row = make("div", { className: "choices" }, "candidates: ");
    for (const text of texts) {
      const chip = make("button", { type: "button", tabIndex: -1, textContent: text || "(empty)" });
      chip.addEventListener("click", () => {
        propose(path, text);
        inputOf(path).focus();
      });
      row.append(chip, " ");
    }
    return [row];
  }

  function build(schema, path, name) {
    if (schema.type === "array") return table(schema, path, name);
    if (schema.type === "object") {
      const inner = Object.entries(schema.properties).map(([key, part]) => build(part, path ? `${path}.${key}` : key, key));
      return path ? make("fieldset", {}, make("legend", { textContent: name }), ...inner) : make("div", {}, ...inner);
    }
    const label = make("label", { for: `field-${path}`, textContent: name });
    return make("div", { className: `value ${classOf(path)}` },
      make("div", { className: "head" }, label, state(path)), entry(path), ...choices(path));
  }

  function table(schema, path, name) {
    const columns = Object.entries(schema.items.properties);
    const rows = doc.rows[path] || [];
    const head = make("tr", {}, ...columns.map(([column]) => make("th", { textContent: column, scope: "col" })), make("th"));
    const body = rows.map((number, index) => {
      const cells = columns.map(([column, part]) => {
        const cell = `${path}.${number}.${column}`;
        if (part.type === "array" || part.type === "object") return make("td", {}, build(part, cell, column));
        return make("td", { className: classOf(cell) }, entry(cell, `${column}, row ${index + 1} of ${name}`), state(cell), ...choices(cell));
      });
      const remove = make("button", { type: "button", tabIndex: -1, textContent: "×", "aria-label": `Remove row ${index + 1} of ${name}` });
      remove.addEventListener("click", () => removeRow(`${path}.${number}`));
      return make("tr", {}, ...cells, make("td", { className: "narrow" }, remove));
    });
    const whole = make("button", {
      type: "button", path, tabIndex: isLeft(path) ? 0 : -1, "aria-describedby": `state-${path}`,
      textContent: rows.length === 1 ? "The 1 row is all there is" : `The ${rows.length} rows are all there are`,
    });
    whole.addEventListener("click", () => commit(path));
    const add = make("button", { type: "button", tabIndex: -1, textContent: "New row" });
    add.addEventListener("click", () => addRow(path, null));
    return make("fieldset", { className: `value ${classOf(path)}` }, make("legend", { textContent: name }),
      make("div", { className: "scroll" }, make("table", {}, make("thead", {}, head), make("tbody", {}, ...body))),
      make("div", { className: "rows" }, whole, add, state(path)));
  }

  // --- What is shown --------------------------------------------------------------------------------------------------

  function show(answer, wanted) {
    const changed = !doc || !answer.document || doc.document !== answer.document.document;
    doc = answer.document;
    showProgress(answer.progress);
    problem("");
    $("who").hidden = true;
    $("work").hidden = !doc;
    $("end").hidden = !!doc;
    if (!doc) {
      drafts = {};
      $("back").focus();
      return;
    }
    if (changed) {
      watch(null);
      drafts = storedDrafts();
      showPages();
    }
    $("file").textContent = doc.file;
    $("question").textContent = doc.question;
    $("question").hidden = !doc.question;
    const notes = [doc.audit && "Audit: these values were accepted, and all of them are looked at.", doc.problem]
      .filter(Boolean);
    $("note").textContent = notes.join(" ");
    $("note").hidden = !notes.length;
    $("form").replaceChildren(build(form.schema, "", ""));
    $("finish").setAttribute("aria-disabled", String(doc.left.length > 0));
    $("finish").textContent = doc.left.length
      ? `Finish document (${doc.left.length} to look at)` : "Finish document";
    focusOn(wanted === undefined ? doc.left[0] : wanted);
  }

  function showProgress(progress) {
    const { done, waiting, skipped, confirmed, corrected } = progress;
    const text = `${done} finished, ${waiting} waiting${skipped ? `, ${skipped} skipped` : ""} · ` +
      `${confirmed} values confirmed, ${corrected} corrected`;
    $("progress").textContent = text;
    $("summary").textContent = `${text}. Documents that another reviewer works on are not shown to you.`;
  }

  function showPages() {
    const pages = [];
    for (let number = 0; number < doc.pages; number += 1) {
      if (doc.media[number] === "audio") {
        pages.push(make("p", { textContent: "A recording: listen to the file itself." }));
        continue;
      }
      const image = make("img", { src: `/image/${doc.document}/${number}`, alt: `Page ${number + 1} of ${doc.file}` });
      pages.push(make("div", { className: "page" }, image));
    }
    $("pages").replaceChildren(...pages);
    setZoom(zoom);
  }

  function setZoom(value) {
    zoom = Math.min(6, Math.max(0.2, value));
    for (const page of document.querySelectorAll(".page")) page.style.width = `${zoom * 100}%`;
  }

  function showBoxes(path) {
    for (const box of document.querySelectorAll(".box")) box.remove();
    const pages = document.querySelectorAll("#pages > *");
    let first = null;
    for (const { page, box } of doc.where[path] || []) {
      if (!pages[page] || !pages[page].classList.contains("page")) continue;
      const [left, top, right, bottom] = box;
      const frame = make("div", { className: "box" });
      frame.style.left = `${left / 10}%`;
      frame.style.top = `${top / 10}%`;
      frame.style.width = `${(right - left) / 10}%`;
      frame.style.height = `${(bottom - top) / 10}%`;
      pages[page].append(frame);
      first = first || frame;
    }
    if (first) first.scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  function focusOn(path) {
    const field = path === undefined ? $("finish") : inputOf(path);
    if (!field) return $("finish").focus();
    field.focus();
    if (field.select && field.tagName === "INPUT") field.select();
    return undefined;
  }

  function nextLeft(path) {
    const order = Object.keys(doc.values);
    const from = order.indexOf(path);
    return doc.left.find((other) => order.indexOf(other) > from) || doc.left[0];
  }

  // --- Drafts: what is typed and not kept survives a reload -------------------------------------------------------------

  function storedDrafts() {
    const stored = JSON.parse(sessionStorage.getItem("drafts") || "{}");
    return stored.document === doc.document ? stored.drafts : {};
  }
  function keepDraft(path, text) {
    if (text === asText(doc.values[path].value)) delete drafts[path];
    else drafts[path] = text;
    sessionStorage.setItem("drafts", JSON.stringify({ document: doc.document, drafts }));
    const holder = inputOf(path).closest(".value, td");
    holder.classList.toggle("draft", path in drafts);
  }
  function propose(path, text) {
    inputOf(path).value = text;
    keepDraft(path, text);
  }

  // --- Decisions ------------------------------------------------------------------------------------------------------

  const change = (action, field = "", after = null, seconds = 0, above = null) =>
    ask("change", { document: doc.document, seen: doc.seen, action, field, after, seconds, above });

  function commit(path) {
    return inTurn(async () => {
      const field = inputOf(path);
      if (!doc || !field) return;
      const isList = schemaAt(path).type === "array";
      const value = isList ? null : asValue(field.value, schemaAt(path));
      const same = isList || asText(value) === asText(doc.values[path].value);
      const decided = doc.values[path].decided;
      if (same && decided) {
        focusOn(nextLeft(path));
        return;
      }
      const answer = await change(same ? "confirm" : "correct", path, same ? null : value, secondsOf(path));
      delete drafts[path];
      sessionStorage.setItem("drafts", JSON.stringify({ document: doc.document, drafts }));
      doc = answer.document;
      show(answer, nextLeft(path));
    });
  }

  // The new row stands above the row of this number; at the end where that is null.
  function addRow(path, above) {
    return inTurn(async () => {
      const number = doc.next_rows[path];
      const blank = form.blank[path.replace(/\.\d+(?=\.|$)/g, "")];
      const answer = await change("add_row", `${path}.${number}`, blank, 0, above);
      const first = Object.keys(answer.document.values).find((other) => other.startsWith(`${path}.${number}.`));
      show(answer, first);
    });
  }

  function removeRow(path) {
    return inTurn(async () => {
      const answer = await change("remove_row", path, null, secondsOf(path));
      for (const draft of Object.keys(drafts)) if (draft.startsWith(`${path}.`)) delete drafts[draft];
      show(answer);
    });
  }

  function finish() {
    return inTurn(async () => {
      const typed = Object.keys(drafts).find((path) => inputOf(path));
      if (typed || doc.left.length) {
        focusOn(typed || doc.left[0]);
        problem(typed ? `${typed} was changed and not kept: press Enter in it, or Esc` : "Not decided yet: this value");
        return;
      }
      await change("finish");
      show(await ask("take"));
    });
  }

  const skip = () => inTurn(async () => {
    await change("skip");
    show(await ask("take"));
  });

  const undo = () => inTurn(async () => {
    const answer = await ask("undo");
    drafts = {};
    sessionStorage.removeItem("drafts");
    show(answer);
  });

  // --- Keys -----------------------------------------------------------------------------------------------------------

  function onKey(event) {
    const field = event.target;
    const path = field.dataset ? field.dataset.path : undefined;
    const typed = path !== undefined && path in drafts;
    const shift = event.shiftKey && event.key === "Enter" ? "shift" : ""; // elsewhere it is part of the key: +
    const keys = [event.ctrlKey || event.metaKey ? "ctrl" : "", event.altKey ? "alt" : "", shift, event.key].filter(Boolean);
    const list = path === undefined ? undefined : Object.keys(doc ? doc.rows : {})
      .filter((other) => path === other || path.startsWith(`${other}.`)).pop();
    const actions = {
      "ctrl Enter": () => finish(),
      "ctrl z": typed ? null : () => undo(),
      "alt s": () => skip(),
      "alt +": () => setZoom(zoom * 1.25),
      "alt =": () => setZoom(zoom * 1.25),
      "alt -": () => setZoom(zoom * 0.8),
      "alt 0": () => setZoom(1),
    };
    if (path !== undefined) {
      if (field.tagName !== "BUTTON") {
        actions.Enter = () => commit(path);
        if (field.tagName !== "TEXTAREA") actions["shift Enter"] = actions.Enter;
      }
      if (typed) actions.Escape = () => propose(path, asText(doc.values[path].value));
      actions["ctrl ArrowDown"] = () => step(path, 1);
      actions["ctrl ArrowUp"] = () => step(path, -1);
      if (field.tagName === "INPUT") {
        actions.ArrowDown = () => cycle(field, path, 1);
        actions.ArrowUp = () => cycle(field, path, -1);
      }
    }
    if (list !== undefined) {
      const row = path.slice(list.length + 1).split(".")[0];
      const rows = doc.rows[list];
      const below = rows[rows.indexOf(Number(row)) + 1];
      actions["alt Enter"] = () => addRow(list, row === "" || below === undefined ? null : below);
      if (row !== "") {
        actions["alt shift Enter"] = () => addRow(list, Number(row));
        actions["alt Backspace"] = () => removeRow(`${list}.${row}`);
      }
    }
    const action = doc || keys.join(" ") === "ctrl z" ? actions[keys.join(" ")] : undefined;
    if (!action) return;
    event.preventDefault();
    action();
  }

  function step(path, by) {
    const order = inputs().map((element) => element.dataset.path);
    focusOn(order[(order.indexOf(path) + by + order.length) % order.length]);
  }

  function cycle(field, path, by) {
    const texts = candidatesOf(path);
    const index = texts.indexOf(field.value);
    propose(path, texts[(Math.max(0, index) + by + texts.length) % texts.length]);
    field.select();
  }

  // --- Beginning ------------------------------------------------------------------------------------------------------

  async function begin() {
    if (!reviewer) {
      $("who").hidden = false;
      $("name").focus();
      return;
    }
    await inTurn(async () => {
      form = await (await fetch("/api/form")).json();
      show(await ask("take"));
    });
  }

  $("who").addEventListener("submit", (event) => {
    event.preventDefault();
    reviewer = $("name").value.trim();
    if (!reviewer) return;
    localStorage.setItem("reviewer", reviewer);
    begin();
  });
  document.addEventListener("keydown", onKey);
  document.addEventListener("focusin", (event) => {
    const path = event.target.dataset ? event.target.dataset.path : undefined;
    watch(path === undefined ? null : path);
    if (path !== undefined && doc) showBoxes(path);
  });
  document.addEventListener("visibilitychange", () => {
    watch(document.hidden ? null : (document.activeElement.dataset || {}).path || null);
    if (!document.hidden) renew();
  });
  $("finish").addEventListener("click", finish);
  $("skip").addEventListener("click", skip);
  $("undo").addEventListener("click", undo);
  $("back").addEventListener("click", undo);
  for (const button of document.querySelectorAll("[data-zoom]")) {
    button.addEventListener("click", () => setZoom(Number(button.dataset.zoom) ? zoom * Number(button.dataset.zoom) : 1));
  }
  function renew() {
    if (doc) inTurn(async () => doc && showProgress((await ask("renew", { document: doc.document })).progress));
  }
  setInterval(() => document.hidden || renew(), RENEW_EVERY);
  begin();
})();
