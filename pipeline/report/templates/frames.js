"use strict";
(() => {
  // Decodes the depth grids of pipeline/report/pictures_file.py, draws them, and shows their value at a pixel.
  const SEARCH_PX = 3; // how far from the cursor a LiDAR return may lie
  const BACKDROP = {points: 0.7, error: 0.5}; // how much the image is darkened below points
  const colours = JSON.parse(document.getElementById("frame-colours").textContent);
  const readoutOf = (element) => element.closest(".strips").querySelector(".readout");

  async function decoded(grid) {
    const packed = Uint8Array.from(atob(grid.data), (character) => character.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    const planes = new Uint8Array(await new Response(stream).arrayBuffer());
    const {width, height} = grid, count = width * height;
    const metres = new Float32Array(count), codes = new Uint16Array(count);
    for (let i = 0; i < count; i++) {
      const zigzag = planes[i] | (planes[count + i] << 8);
      const before = i % width ? codes[i - 1] : i ? codes[i - width] : 0;
      codes[i] = before + ((zigzag >>> 1) ^ -(zigzag & 1));
      metres[i] = codes[i] ? colours.nearest_m * Math.exp((codes[i] - 1) * colours.log_step) : 0;
    }
    return {width, height, metres};
  }

  function at(grid, x, y) {
    const column = Math.min(grid.width - 1, Math.floor(x * grid.width));
    const row = Math.min(grid.height - 1, Math.floor(y * grid.height));
    return {column, row, x: (column + 0.5) / grid.width, y: (row + 0.5) / grid.height,
      metres: grid.metres[row * grid.width + column]};
  }

  // The nearest pixel with a depth, in a grid that is mostly empty.
  function nearest(grid, x, y) {
    const {column, row} = at(grid, x, y);
    let found = null, best = SEARCH_PX * SEARCH_PX + 1;
    for (let r = Math.max(0, row - SEARCH_PX); r <= Math.min(grid.height - 1, row + SEARCH_PX); r++) {
      for (let c = Math.max(0, column - SEARCH_PX); c <= Math.min(grid.width - 1, column + SEARCH_PX); c++) {
        const distance = (r - row) ** 2 + (c - column) ** 2;
        if (distance < best && grid.metres[r * grid.width + c] > 0) {
          best = distance;
          found = {...at(grid, (c + 0.5) / grid.width, (r + 0.5) / grid.height), away: Math.sqrt(distance)};
        }
      }
    }
    return found;
  }

  const isSparse = (name) => name === "lidar";
  const look = (grids, name, x, y) => (isSparse(name) ? nearest : at)(grids[name], x, y);

  // (of - against) / against where both are known; against LiDAR, at the nearest return.
  function errorAt(grids, of, against, x, y) {
    const truth = look(grids, against, x, y);
    if (!truth || !truth.metres) return null;
    const said = at(grids[of], truth.x, truth.y).metres;
    return said ? said / truth.metres - 1 : null;
  }

  function depthColour(metres) {
    const inside = Math.min(Math.max(metres, colours.near_m), colours.far_m);
    const fraction = Math.log(inside / colours.near_m) / Math.log(colours.far_m / colours.near_m);
    return colours.depth[Math.round(fraction * (colours.depth.length - 1))];
  }

  function errorColour(error) {
    const fraction = (Math.min(Math.max(error / colours.error_limit, -1), 1) + 1) / 2;
    return colours.error[Math.round(fraction * (colours.error.length - 1))];
  }

  function drawDense(canvas, grid, colourOf) {
    canvas.width = grid.width;
    canvas.height = grid.height;
    const context = canvas.getContext("2d"), pixels = context.createImageData(grid.width, grid.height);
    for (let i = 0; i < grid.metres.length; i++) {
      pixels.data.set(colourOf(i) || colours.none, 4 * i);
      pixels.data[4 * i + 3] = 255;
    }
    context.putImageData(pixels, 0, 0);
  }

  function drawPoints(canvas, image, points, darkened) {
    canvas.width = image.naturalWidth;
    canvas.height = image.naturalHeight;
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0);
    context.globalCompositeOperation = "saturation";
    context.fillStyle = "#808080";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.globalCompositeOperation = "source-over";
    context.fillStyle = `rgb(0 0 0 / ${darkened})`;
    context.fillRect(0, 0, canvas.width, canvas.height);
    const radius = Math.max(1.2, canvas.width / 260);
    for (const point of points) {
      context.fillStyle = `rgb(${point.colour.join(" ")})`;
      context.beginPath();
      context.arc(point.x * canvas.width, point.y * canvas.height, radius, 0, 7);
      context.fill();
    }
  }

  function* returns(grid) {
    for (let i = 0; i < grid.metres.length; i++) {
      if (grid.metres[i]) yield at(grid, ((i % grid.width) + 0.5) / grid.width, (Math.floor(i / grid.width) + 0.5) / grid.height);
    }
  }

  function draw(canvas, image, grids) {
    const {kind, of, against} = canvas.dataset;
    if (kind === "depth" && isSparse(of)) {
      const points = Array.from(returns(grids[of]), (p) => ({...p, colour: depthColour(p.metres)}));
      points.sort((p, q) => q.metres - p.metres); // where they overlap, the nearest is on top
      drawPoints(canvas, image, points, BACKDROP.points);
    } else if (kind === "sigma") { // percent in place of metres
      const {metres} = grids[of];
      drawDense(canvas, grids[of], (i) => metres[i] && errorColour(metres[i] / 100));
    } else if (kind === "depth") {
      const {metres} = grids[of];
      drawDense(canvas, grids[of], (i) => metres[i] && depthColour(metres[i]));
    } else if (isSparse(against)) {
      const points = [];
      for (const point of returns(grids[against])) {
        const error = errorAt(grids, of, against, point.x, point.y);
        if (error !== null) points.push({...point, error, colour: errorColour(error)});
      }
      points.sort((p, q) => Math.abs(p.error) - Math.abs(q.error)); // the worst is on top
      drawPoints(canvas, image, points, BACKDROP.error);
    } else {
      const grid = grids[of];
      drawDense(canvas, grid, (i) => {
        const x = ((i % grid.width) + 0.5) / grid.width, y = (Math.floor(i / grid.width) + 0.5) / grid.height;
        const error = errorAt(grids, of, against, x, y);
        return error !== null && errorColour(error);
      });
    }
    canvas.dataset.drawn = "yes";
  }

  const metresText = (metres) => (metres < 10 ? metres.toFixed(2) : metres.toFixed(1)) + " m";
  const percentText = (error) => (error < 0 ? "-" : "+") + Math.abs(100 * error).toFixed(1) + " %";

  function value(grids, {kind, of, against}, x, y) {
    if (kind === "error") {
      const error = errorAt(grids, of, against, x, y);
      return error === null ? "–" : percentText(error);
    }
    const found = look(grids, of, x, y);
    if (!found || !found.metres) return "–";
    if (kind === "sigma") return `±${found.metres.toFixed(1)} %`;
    return metresText(found.metres) + (found.away ? `, ${found.away.toFixed(0)} px away` : "");
  }

  function setUp(view, grids) {
    const image = view.querySelector("img"), canvases = [...view.querySelectorAll("canvas")];
    const readout = readoutOf(view);
    // The cursor steps over the pixels of the largest depth map.
    const steps = Object.values(grids).reduce((a, b) => (b.width > a.width ? b : a));
    let cursor = null;

    function hide() {
      cursor = null;
      view.classList.remove("cursor");
      canvases.forEach((canvas) => (canvas.parentElement.querySelector("i").textContent = ""));
      readout.hidden = true;
    }

    function show(x, y) {
      const all = document.querySelectorAll(".view.cursor");
      all.forEach((other) => other !== view && other.dispatchEvent(new Event("leave")));
      cursor = at(steps, Math.min(Math.max(x, 0), 1), Math.min(Math.max(y, 0), 1));
      view.classList.add("cursor");
      view.style.setProperty("--x", cursor.x);
      view.style.setProperty("--y", cursor.y);
      const parts = [view.dataset.camera, `x ${cursor.column}, y ${cursor.row}`];
      for (const canvas of canvases) {
        const text = value(grids, canvas.dataset, cursor.x, cursor.y), tag = canvas.parentElement;
        tag.querySelector("i").textContent = text;
        parts.push(`${tag.querySelector("b").textContent} ${text}`);
      }
      readout.textContent = parts.join(" · ");
      readout.hidden = false;
    }

    function follow(event) {
      const picture = event.target.closest(".picture:not(.none)");
      if (!picture) return;
      const box = picture.getBoundingClientRect();
      show((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
    }

    view.addEventListener("pointermove", (event) => event.pointerType === "mouse" && follow(event));
    view.addEventListener("click", follow);
    view.addEventListener("leave", hide);
    view.addEventListener("focus", () => cursor || (view.matches(":focus-visible") && show(0.5, 0.5)));
    view.addEventListener("keydown", (event) => {
      if (event.key === "Escape") hide();
      const step = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[event.key];
      if (!step || event.altKey || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      const length = event.shiftKey ? 10 : 1, from = cursor || {x: 0.5, y: 0.5};
      show(from.x + (step[0] * length) / steps.width, from.y + (step[1] * length) / steps.height);
    });
    const drawAll = () => canvases.forEach((canvas) => draw(canvas, image, grids));
    image.decode().then(drawAll, drawAll);
  }

  async function open(frame) {
    const packed = JSON.parse(document.getElementById(frame.dataset.grids).textContent);
    for (const view of frame.querySelectorAll(".view[data-view]")) {
      const names = Object.entries(packed[view.dataset.view]);
      const grids = Object.fromEntries(await Promise.all(names.map(async ([name, grid]) => [name, await decoded(grid)])));
      setUp(view, grids);
    }
  }

  const observer = new IntersectionObserver((entries) => {
    for (const {isIntersecting, target} of entries) {
      if (!isIntersecting) continue;
      observer.unobserve(target);
      open(target).catch((error) => {
        const readout = readoutOf(target);
        readout.textContent = `Depth cannot be drawn: ${error.message}`;
        readout.hidden = false;
      });
    }
  }, {rootMargin: "600px"});
  document.querySelectorAll(".frame").forEach((frame) => observer.observe(frame));
  addEventListener("beforeprint", () => document.querySelectorAll(".frame").forEach((frame) => open(frame)));

  document.getElementById("picture-size").addEventListener("input", (event) => {
    document.documentElement.style.setProperty("--view-width", `${event.target.value}rem`);
  });
})();
