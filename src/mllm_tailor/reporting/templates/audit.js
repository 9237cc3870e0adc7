"use strict";
const cards = [...document.querySelectorAll(".suspect")];
const decisions = new Map();
const saved = "audit:" + document.title + ":" + location.pathname;

function draw(card) {
  const decision = decisions.get(card.id);
  card.classList.toggle("kept", decision?.decision === "keep");
  card.classList.toggle("fixed", decision?.decision === "fix");
  card.querySelector(".undo").hidden = !decision;
  card.querySelector(".fixing").hidden = true;
  card.querySelector(".outcome").textContent =
    !decision ? "" : decision.decision === "keep" ? "kept as it is" : "fixed: " + (decision.value || "∅ (empty)");
  document.getElementById("decided").textContent = decisions.size;
  document.getElementById("download").disabled = !decisions.size;
}

function store() {
  try { localStorage.setItem(saved, JSON.stringify([...decisions])); } catch { /* private windows keep nothing */ }
}

function decide(card, decision, value) {
  const row = { id: card.dataset.id, field: card.dataset.field, decision, label: JSON.parse(card.dataset.label) };
  decisions.set(card.id, decision === "fix" ? { ...row, value } : row);
  draw(card);
  store();
  move(card, 1);
}

function undo(card) {
  decisions.delete(card.id);
  draw(card);
  store();
  card.focus();
}

function open(card) {
  card.querySelector(".fixing").hidden = false;
  const text = card.querySelector("textarea");
  text.focus();
  text.select();
}

function move(card, by) {
  const next = cards[Math.min(Math.max(cards.indexOf(card) + by, 0), cards.length - 1)];
  next?.focus({ preventScroll: true });
  next?.scrollIntoView({ block: "start" });
}

function confirm(card) {
  const text = card.querySelector("textarea").value.trim();
  const label = JSON.parse(card.dataset.label);
  let value = text;
  if (label !== null && typeof label !== "string") {
    try { value = JSON.parse(text); } catch { /* stays text, which `--apply` checks against the field's type */ }
  }
  decide(card, "fix", value);
}

for (const card of cards) {
  card.querySelector(".keep").onclick = () => decide(card, "keep");
  card.querySelector(".fix").onclick = () => open(card);
  card.querySelector(".undo").onclick = () => undo(card);
  card.querySelector(".cancel").onclick = () => { draw(card); card.focus(); };
  card.querySelector("form").onsubmit = (event) => { event.preventDefault(); confirm(card); };
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const card = document.activeElement.closest(".suspect") || cards[0];
  if (!card) return;
  if (document.activeElement.tagName === "TEXTAREA") {
    if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); confirm(card); }
    if (event.key === "Escape") { draw(card); card.focus(); }
    return;
  }
  const outside = !document.activeElement.closest(".suspect");
  const keys = {
    k: () => decide(card, "keep"), f: () => open(card), u: () => undo(card),
    ArrowDown: () => move(card, outside ? 0 : 1), ArrowUp: () => move(card, -1),
  };
  const act = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (act) { event.preventDefault(); act(); }
});

document.getElementById("download").onclick = () => {
  const lines = [...decisions.values()].map((row) => JSON.stringify(row) + "\n");
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(lines, { type: "application/jsonl" }));
  link.download = "decisions.jsonl";
  link.click();
  URL.revokeObjectURL(link.href);
};

try {
  for (const [id, row] of JSON.parse(localStorage.getItem(saved) || "[]")) {
    const card = document.getElementById(id);
    if (card?.dataset.id === row.id && card.dataset.field === row.field && card.dataset.label === JSON.stringify(row.label)) {
      decisions.set(id, row);
      draw(card);
    }
  }
} catch { /* nothing was kept */ }
