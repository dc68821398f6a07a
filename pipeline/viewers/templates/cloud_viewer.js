// Shows a point cloud in a canvas: turn, move and zoom by mouse, touch or keyboard. Nothing is loaded. The vehicle's
// frame is x forward, y left, z up. The script stands at the end of its section, or at the end of a page that has only
// one such section.
(() => {
  const section = document.currentScript.closest("section.cloud") ?? document.querySelector("section.cloud");
  const canvas = section.querySelector("canvas");
  const gl = canvas.getContext("webgl", { antialias: false, alpha: false });
  if (!gl) {
    canvas.style.display = "none";
    section.querySelector("[data-no-webgl]").hidden = false;
    return;
  }
  const bytes = (name) => {
    const text = atob(section.querySelector(`[data-${name}]`).textContent.trim());
    return Uint8Array.from(text, (c) => c.charCodeAt(0)).buffer;
  };
  const points = new Int16Array(bytes("points")), colours = new Uint8Array(bytes("colours"));
  const unit = Number(canvas.dataset.metresPerUnit), spacing = Number(canvas.dataset.radiansPerPoint);

  const shader = (kind, source) => {
    const made = gl.createShader(kind);
    gl.shaderSource(made, source);
    gl.compileShader(made);
    gl.attachShader(program, made);
  };
  const program = gl.createProgram();
  // A point is as large as its pixel in the camera image, which covers more the farther it is from the vehicle.
  shader(gl.VERTEX_SHADER, `
    attribute vec3 place; attribute vec3 colour; uniform mat4 clip; uniform float cell; varying vec3 shown;
    void main() {
      gl_Position = clip * vec4(place, 1.0);
      gl_PointSize = clamp(cell * length(place) / gl_Position.w, 1.5, 40.0);
      shown = colour;
    }`);
  shader(gl.FRAGMENT_SHADER, "precision mediump float; varying vec3 shown; void main() { gl_FragColor = vec4(shown, 1.0); }");
  gl.linkProgram(program);
  gl.useProgram(program);
  const attribute = (name, data, type, normalised) => {
    const buffer = gl.createBuffer(), index = gl.getAttribLocation(program, name);
    gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
    gl.bufferData(gl.ARRAY_BUFFER, data, gl.STATIC_DRAW);
    gl.enableVertexAttribArray(index);
    return () => {
      gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
      gl.vertexAttribPointer(index, 3, type, normalised, 0, 0);
    };
  };
  const cloud = [attribute("place", points, gl.SHORT, false), attribute("colour", colours, gl.UNSIGNED_BYTE, true)];
  const two = 2 / unit; // axes of two metres at the vehicle: x red, y green, z blue
  const axes = [
    attribute("place", new Float32Array([0, 0, 0, two, 0, 0, 0, 0, 0, 0, two, 0, 0, 0, 0, 0, 0, two]), gl.FLOAT, false),
    attribute("colour", new Uint8Array([255, 60, 60, 255, 60, 60, 60, 220, 60, 60, 220, 60, 80, 120, 255, 80, 120, 255]),
      gl.UNSIGNED_BYTE, true),
  ];
  gl.enable(gl.DEPTH_TEST);
  gl.clearColor(0.09, 0.1, 0.11, 1);

  const START = { target: [6, 0, 0], yaw: -0.35, pitch: -0.45, distance: 22 };
  let view = structuredClone(START);
  const HALF_HEIGHT = Math.tan(0.5); // of the field of view, 57 degrees
  const NEAR = 0.1, FAR = 1000;
  const frame = () => {
    const [cy, sy, cp, sp] = [Math.cos(view.yaw), Math.sin(view.yaw), Math.cos(view.pitch), Math.sin(view.pitch)];
    return { right: [sy, -cy, 0], up: [-cy * sp, -sy * sp, cp], ahead: [cp * cy, cp * sy, sp] };
  };
  const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
  let asked = false;
  const draw = () => {
    asked = false;
    const ratio = window.devicePixelRatio || 1;
    canvas.width = Math.max(1, Math.round(canvas.clientWidth * ratio));
    canvas.height = Math.max(1, Math.round(canvas.clientHeight * ratio));
    gl.viewport(0, 0, canvas.width, canvas.height);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    const { right, up, ahead } = frame();
    const eye = view.target.map((value, k) => value - view.distance * ahead[k]);
    const row = (axis, scale) => [...axis.map((value) => value * scale * unit), -dot(axis, eye) * scale];
    const deep = row(ahead, 1);
    const rows = [
      row(right, canvas.height / canvas.width / HALF_HEIGHT),
      row(up, 1 / HALF_HEIGHT),
      deep.map((value, k) => (value * (FAR + NEAR) - (k === 3 ? 2 * FAR * NEAR : 0)) / (FAR - NEAR)),
      deep,
    ];
    const columns = [0, 1, 2, 3].flatMap((k) => rows.map((values) => values[k]));
    gl.uniformMatrix4fv(gl.getUniformLocation(program, "clip"), false, columns);
    gl.uniform1f(gl.getUniformLocation(program, "cell"), (spacing * unit * canvas.height) / (2 * HALF_HEIGHT));
    cloud.forEach((use) => use());
    gl.drawArrays(gl.POINTS, 0, points.length / 3);
    axes.forEach((use) => use());
    gl.drawArrays(gl.LINES, 0, 6);
  };
  const ask = () => {
    if (!asked) requestAnimationFrame(draw);
    asked = true;
  };
  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
  const turn = (dx, dy) => {
    view.yaw -= dx;
    view.pitch = clamp(view.pitch - dy, -1.57, 1.57);
    ask();
  };
  const zoom = (factor) => {
    view.distance = clamp(view.distance * factor, 0.5, 400);
    ask();
  };
  const move = (dx, dy) => {
    const { right, up } = frame();
    view.target = view.target.map((value, k) => value - view.distance * (right[k] * dx - up[k] * dy));
    ask();
  };

  const down = new Map(); // pressed pointers: one turns, two move and zoom
  const middle = () => [0, 1].map((k) => [...down.values()].reduce((sum, at) => sum + at[k], 0) / down.size);
  const apart = () => {
    const [a, b] = down.values();
    return b ? Math.hypot(a[0] - b[0], a[1] - b[1]) : 0;
  };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.focus({ preventScroll: true });
    canvas.setPointerCapture(event.pointerId);
    down.set(event.pointerId, [event.clientX, event.clientY]);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!down.has(event.pointerId)) return;
    const [before, gap] = [middle(), apart()];
    down.set(event.pointerId, [event.clientX, event.clientY]);
    const [dx, dy] = middle().map((value, k) => value - before[k]);
    const scale = (2 * HALF_HEIGHT) / canvas.clientHeight;
    if (down.size > 1 || event.shiftKey || event.buttons > 1) move(dx * scale, dy * scale);
    else turn(dx * 0.006, dy * 0.006);
    if (gap && apart()) zoom(gap / apart());
  });
  const up = (event) => down.delete(event.pointerId);
  ["pointerup", "pointercancel", "lostpointercapture"].forEach((name) => canvas.addEventListener(name, up));
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  canvas.addEventListener("wheel", (event) => {
    if (document.activeElement !== canvas) return; // the page scrolls until the cloud is clicked
    event.preventDefault();
    zoom(Math.exp(clamp(event.deltaY, -200, 200) * 0.0015));
  }, { passive: false });
  const step = 0.08;
  const keys = {
    ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step],
  };
  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (keys[event.key]) (event.shiftKey ? move : turn)(...keys[event.key]);
    else if (event.key === "+" || event.key === "=") zoom(1 / 1.15);
    else if (event.key === "-") zoom(1.15);
    else if (event.key === "Home") view = structuredClone(START);
    else return;
    ask();
    event.preventDefault();
  });
  new ResizeObserver(ask).observe(canvas);
  ask();
})();
