// Keeps what annotators type and choose in Label Studio's drafts.
//
// Label Studio saves a draft five seconds after a change, and counts text as a change only once it was added with
// Shift+Enter; text in an added field counts once the field loses the focus. A reload or a way out before that loses it.
// This script does both after a short pause, when a field is left, and when the page goes away. It only sends the events
// that the page itself sends, so that without it everything works as before.
(() => {
  "use strict";
  if (window.keepsDrafts) return; // Label Studio runs the scripts of a page again when it opens another
  window.keepsDrafts = true;
  const PAUSE = 700; // milliseconds
  const NEW = '[data-testid="textarea-input"]';
  const ADDED = '[data-testid="htx-textbox-input"]';
  const CONTROL = '[data-testid="textarea-control"]';
  let timer = 0;
  let wanted = 0; // when a person last typed into a field, pointed at one, or pressed Tab

  const isField = (node) => node instanceof HTMLTextAreaElement && node.closest(".desk") && node.matches(`${NEW}, ${ADDED}`);
  const annotation = () => window.Htx?.annotationStore?.selected;
  const save = () => annotation()?.saveDraftImmediately?.();

  function write(field, text) {
    Object.getOwnPropertyDescriptor(HTMLTextAreaElement.prototype, "value").set.call(field, text);
    field.dispatchEvent(new Event("input", { bubbles: true }));
  }

  // Calls `then` with the field that takes the place of another one in the control.
  function replaced(control, selector, then) {
    const look = () => {
      const field = control.querySelector(selector);
      if (!field) return;
      observer.disconnect();
      then(field);
    };
    const observer = new MutationObserver(look);
    observer.observe(control, { childList: true, subtree: true });
    setTimeout(() => observer.disconnect(), 5 * PAUSE);
    queueMicrotask(look);
  }

  // A new text becomes an added one: the field is replaced, and the cursor stays where it was.
  function add(field) {
    const { value, selectionStart, selectionEnd } = field;
    const focused = document.activeElement;
    replaced(field.closest(CONTROL), ADDED, (added) => {
      if (focused === field) {
        added.focus();
        if (added.value === value) added.setSelectionRange(selectionStart, selectionEnd);
      } else if (document.activeElement === added) {
        added.blur();
        if (focused?.isConnected) focused.focus();
      }
    });
    field.dispatchEvent(new KeyboardEvent("keydown", { key: "Enter", shiftKey: true, bubbles: true, cancelable: true }));
  }

  // An added text that was emptied is removed, so that a required field counts as empty.
  function remove(field) {
    const name = field.name.split(":")[0];
    if (document.activeElement === field) replaced(field.closest(CONTROL), NEW, (empty) => empty.focus());
    annotation()?.names?.get(name)?.regions?.[0]?.deleteRegion();
  }

  function keep(field) {
    if (!isField(field) || !field.isConnected || field.readOnly) return;
    const empty = !field.value.trim();
    if (field.matches(ADDED)) {
      if (empty) remove(field);
      else field.dispatchEvent(new FocusEvent("focusout", { bubbles: true }));
    } else if (!empty) add(field);
    else if (field.value && document.activeElement !== field) write(field, "");
  }

  function keepSoon() {
    clearTimeout(timer);
    timer = setTimeout(() => {
      keep(document.activeElement);
      save();
    }, PAUSE);
  }

  function keepNow() {
    clearTimeout(timer);
    document.querySelectorAll(".desk textarea").forEach(keep);
    save();
  }

  // The request of a page that goes away is finished only if it is marked so.
  function keepAtTheEnd() {
    const fetch = window.fetch;
    window.fetch = (address, options) => fetch(address, { ...options, keepalive: true });
    keepNow();
    setTimeout(() => {
      window.fetch = fetch;
    }, 0);
  }

  for (const event of ["input", "keyup", "click", "pointerup"]) {
    document.addEventListener(event, (e) => e.target?.closest?.(".desk") && keepSoon(), true);
  }
  document.addEventListener("pointerdown", (e) => {
    if (isField(e.target)) wanted = Date.now();
    if (!e.target?.closest?.(".desk")) keepNow();
  }, true);
  document.addEventListener("keydown", (e) => {
    if (e.key === "Tab" || isField(e.target)) wanted = Date.now();
    if (e.key === "Escape" && isField(e.target) && e.target.matches(ADDED)) {
      e.stopPropagation(); // Label Studio would take back what was typed since the last pause
      e.target.blur();
    }
  }, true);
  window.addEventListener("focusout", (e) => {
    if (e.isTrusted && isField(e.target)) {
      setTimeout(() => {
        keep(e.target);
        save();
      }, 0);
    }
  });
  // Label Studio puts the focus into an added text when it opens a task, where keys would not reach the verdict.
  document.addEventListener("focusin", (e) => {
    if (isField(e.target) && e.target.matches(ADDED) && Date.now() - wanted > 3 * PAUSE) e.target.blur();
  });
  window.addEventListener("pagehide", keepAtTheEnd);
  document.addEventListener("visibilitychange", () => document.visibilityState === "hidden" && keepAtTheEnd());
})();
