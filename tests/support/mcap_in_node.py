"""Reads MCAP files with the packages that Foxglove and Lichtblick read them with, from the npm registry."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

PACKAGES = (
    "@foxglove/cdr@3.5.0",
    "@foxglove/crc@0.0.3",
    "@foxglove/message-definition@0.5.0",
    "@foxglove/rosmsg@5.0.5",
    "@foxglove/rosmsg2-serialization@3.1.0",
    "@foxglove/rostime@1.1.3",
    "@foxglove/wasm-zstd@1.0.1",
    "@mcap/core@2.2.2",
    "heap-js@2.7.1",
    "md5-typescript@1.0.5",
    "tslib@2.9.1",
)
FOLDER = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "surround-distill" / "mcap-core-2.2.2"
SCRIPT = """
const fs = require('fs/promises');
const { McapIndexedReader } = require('@mcap/core');
const { parse } = require('@foxglove/rosmsg');
const { MessageReader } = require('@foxglove/rosmsg2-serialization');
const zstd = require('@foxglove/wasm-zstd');

async function main(path) {
  await zstd.isLoaded;
  const file = await fs.open(path);
  const readable = {
    size: async () => BigInt((await file.stat()).size),
    read: async (offset, length) => {
      const buffer = new Uint8Array(Number(length));
      const { bytesRead } = await file.read(buffer, 0, Number(length), Number(offset));
      if (bytesRead !== Number(length)) throw new Error('short read');
      return buffer;
    },
  };
  const decompressHandlers = { zstd: (buffer, size) => zstd.decompress(buffer, Number(size)) };
  const reader = await McapIndexedReader.Initialize({ readable, decompressHandlers });
  const readers = new Map(), topics = {};
  for await (const message of reader.readMessages()) {
    const channel = reader.channelsById.get(message.channelId);
    const schema = reader.schemasById.get(channel.schemaId);
    if (!readers.has(schema.id)) {
      const definition = parse(new TextDecoder().decode(schema.data), { ros2: true });
      readers.set(schema.id, new MessageReader(definition));
    }
    const value = readers.get(schema.id).readMessage(message.data);
    const told = topics[channel.topic] ??= { type: schema.name, encoding: schema.encoding, messages: [] };
    const one = { logged_ns: String(message.logTime), frame: value.header?.frame_id };
    if (value.encoding === '32FC1') {
      const floats = new Float32Array(value.data.slice().buffer);
      Object.assign(one, { height: value.height, width: value.width, middle: floats[Math.floor(floats.length / 2)] });
    }
    if (value.fields) {
      const view = new DataView(value.data.buffer, value.data.byteOffset);
      const last = (value.width - 1) * value.point_step;
      one.last = value.fields.slice(0, 3).map((field) => view.getFloat32(last + field.offset, true));
    }
    if (value.K ?? value.k) one.k = Array.from(value.K ?? value.k);
    if (value.transforms) one.transforms = value.transforms.map((entry) => entry.child_frame_id);
    if (value.format) one.format = value.format;
    told.messages.push(one);
  }
  const { messageCount, chunkCount } = reader.statistics;
  const counted = { messages: Number(messageCount), chunks: chunkCount };
  console.log(JSON.stringify({ profile: reader.header.profile, counted, topics }));
}
main(process.argv[2]);
"""


def read_in_node(path: Path) -> dict[str, Any]:
    """What the packages find in a file: its profile, its statistics, and its messages by topic."""
    script = _installed() / "read.cjs"
    script.write_text(SCRIPT)
    done = subprocess.run(["node", str(script), str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _installed() -> Path:
    """The folder that holds the packages; they are fetched once, and no script of theirs runs."""
    npm, node = shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        pytest.skip("reading MCAP in Node needs npm and node")
    if not (FOLDER / "node_modules").is_dir():
        partial = FOLDER.with_name(f"{FOLDER.name}.{os.getpid()}")
        partial.mkdir(parents=True)
        command = [npm, "install", "--ignore-scripts", "--no-audit", "--no-fund", "--silent", *PACKAGES]
        done = subprocess.run(command, cwd=partial, capture_output=True, text=True)
        if done.returncode:
            shutil.rmtree(partial)
            pytest.skip(f"npm install {' '.join(PACKAGES)} failed: {done.stderr.strip()}")
        partial.rename(FOLDER)
    return FOLDER
