// What a program does with node-vault, as its documentation shows.
import assert from "node:assert/strict";
import vault from "node-vault";

const v = vault({ endpoint: process.env.VAULT_ADDR, token: process.env.VAULT_TOKEN });

const health = await v.health();
assert.equal(health.initialized, true);
assert.equal(health.version, "1.15.0");
assert.equal((await v.status()).sealed, false);
assert.equal((await v.initialized()).initialized, true);

await v.mount({ mount_point: "node", type: "kv", options: { version: "2" }, description: "of a program" });
const mounts = await v.mounts();
assert.equal(mounts["node/"].options.version, "2");
assert.equal(mounts.data["node/"].type, "kv");

const made = await v.write("node/data/app", { data: { user: "ann", port: 5432 } });
assert.equal(made.data.version, 1);
assert.deepEqual((await v.read("node/data/app")).data.data, { user: "ann", port: 5432 });
await v.update("node/data/app", { data: { port: null } });
assert.deepEqual((await v.read("node/data/app")).data.data, { user: "ann" });
assert.deepEqual((await v.list("node/metadata")).data.keys, ["app"]);
await v.delete("node/data/app");
await assert.rejects(v.read("node/data/app"), (err) => err.response.statusCode === 404);
await v.remount({ from: "node", to: "node-moved" });
assert.deepEqual((await v.list("node-moved/metadata")).data.keys, ["app"]);
await v.unmount({ mount_point: "node-moved" });

await v.mount({ mount_point: "node-old", type: "kv" });
await v.write("node-old/a/b", { n: 1.5, s: "x" });
assert.deepEqual((await v.read("node-old/a/b")).data, { n: 1.5, s: "x" });
await v.unmount({ mount_point: "node-old" });

await v.addPolicy({ name: "node", policy: 'path "secret/*" { capabilities = ["read"] }' });
assert.ok((await v.policies()).policies.includes("node"));
assert.equal((await v.getPolicy({ name: "node" })).rules, 'path "secret/*" { capabilities = ["read"] }');
await v.removePolicy({ name: "node" });

const nobody = vault({ endpoint: process.env.VAULT_ADDR, token: "nonsense" });
await assert.rejects(nobody.read("node/data/app"), (err) => err.response.statusCode === 403 && /permission denied/.test(err.message));
console.log("all done");
