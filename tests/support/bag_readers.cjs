// Reads a recording by Foxglove's own libraries: a line of JSON per message, [topic, time of recording, sha256, what].
const { createHash } = require("crypto");
const { open, readFile } = require("fs/promises");

const sha256 = (data) => createHash("sha256").update(data).digest("hex");
const nanoseconds = (time) => (BigInt(time.sec) * 1000000000n + BigInt(time.nsec ?? time.nanosec)).toString();

// Of a decoded message: stamp and frame of its header, and the length of its data.
function what(message) {
  const inner = message.transforms ? message.transforms[0] : message;
  return [nanoseconds(inner.header.stamp), inner.header.frame_id, message.data ? message.data.length : 0];
}

async function mcap(path) {
  const { McapIndexedReader } = require("@mcap/core");
  const { FileHandleReadable } = require("@mcap/nodejs");
  const { parse } = require("@foxglove/rosmsg");
  const { MessageReader } = require("@foxglove/rosmsg2-serialization");
  const { decompress } = require("fzstd");
  const lz4 = require("@foxglove/wasm-lz4");
  await lz4.isLoaded;
  const reader = await McapIndexedReader.Initialize({
    readable: new FileHandleReadable(await open(path)),
    decompressHandlers: {
      lz4: (data, size) => lz4(data, Number(size)),
      zstd: (data, size) => decompress(data, new Uint8Array(Number(size))),
    },
  });
  const decoders = new Map();
  for await (const message of reader.readMessages()) {
    const channel = reader.channelsById.get(message.channelId);
    let said = null;
    if (channel.messageEncoding === "cdr") {
      if (!decoders.has(channel.schemaId)) {
        const text = new TextDecoder().decode(reader.schemasById.get(channel.schemaId).data);
        decoders.set(channel.schemaId, new MessageReader(parse(text, { ros2: true })));
      }
      said = what(decoders.get(channel.schemaId).readMessage(message.data));
    }
    console.log(JSON.stringify([channel.topic, message.logTime.toString(), sha256(message.data), said]));
  }
}

async function rosbag2(path) {
  const { Rosbag2, SqliteSqljs } = require("@foxglove/rosbag2-web");
  const engine = require.resolve("@foxglove/sql.js").replace(/[^/]*$/, "sql-wasm.wasm");
  await SqliteSqljs.Initialize({ wasmBinary: await readFile(engine) });
  const file = new SqliteSqljs(new Uint8Array(await readFile(path)));
  const bag = new Rosbag2([file]);
  await bag.open();
  for await (const raw of bag.readMessages({ rawMessages: true })) {
    const line = [raw.topic.name, nanoseconds(raw.timestamp), sha256(raw.data), what(bag.decodeMessage(raw))];
    console.log(JSON.stringify(line));
  }
  await bag.close();
}

const path = process.argv[2];
(path.endsWith(".mcap") ? mcap(path) : rosbag2(path)).catch((error) => {
  console.error(error);
  process.exit(1);
});
