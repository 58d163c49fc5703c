// Draws frames only while the element is on screen, and none for readers who asked their system for less motion.

const reduced = matchMedia("(prefers-reduced-motion: reduce)");

/** True if nothing may move by itself: then offer a button for one step instead. */
export function still() {
  return reduced.matches;
}

/** Calls `frame(milliseconds since the last)` while running and `root` is on screen. `frame` returns false to end. */
export function animation(root, frame, changed = () => {}) {
  let running = false;
  let visible = true;
  let request = 0;
  let last = 0;

  const tick = (now) => {
    request = 0;
    const elapsed = last ? Math.min(now - last, 100) : 16;
    last = now;
    if (frame(elapsed) === false) stop();
    else ask();
  };
  const ask = () => {
    if (running && visible && !request) request = requestAnimationFrame(tick);
  };
  const pause = () => {
    cancelAnimationFrame(request);
    request = last = 0;
  };
  const observer = new IntersectionObserver(([entry]) => {
    visible = entry.isIntersecting;
    if (visible) ask();
    else pause();
  });
  observer.observe(root);

  function start() {
    running = true;
    ask();
    changed(running);
  }
  function stop() {
    running = false;
    pause();
    changed(running);
  }
  return {
    start,
    stop,
    get running() { return running; },
    destroy() {
      running = false;
      pause();
      observer.disconnect();
    },
  };
}
