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

await v.mount({ mount_point: "node-pki", type: "pki" });
await v.write("node-pki/root/generate/internal", { common_name: "Node", key_type: "ec", ttl: "24h" });
await v.write("node-pki/roles/web", { allowed_domains: "node.example", allow_subdomains: true, key_type: "ec", max_ttl: "1h" });
const leaf = (await v.write("node-pki/issue/web", { common_name: "a.node.example" })).data;
assert.match(leaf.serial_number, /^[0-9a-f]{2}(:[0-9a-f]{2})+$/);
assert.match(leaf.private_key, /EC PRIVATE KEY/);
assert.equal((await v.write("node-pki/revoke", { serial_number: leaf.serial_number })).data.state, "revoked");
await v.unmount({ mount_point: "node-pki" });

await v.mount({ mount_point: "node-transit", type: "transit" });
const plaintext = Buffer.from("attack at dawn").toString("base64");
const sealed = (await v.write("node-transit/encrypt/orders", { plaintext })).data;
assert.match(sealed.ciphertext, /^vault:v1:/);
assert.equal((await v.write("node-transit/decrypt/orders", { ciphertext: sealed.ciphertext })).data.plaintext, plaintext);
await assert.rejects(v.write("node-transit/decrypt/orders", { ciphertext: "vault:v9:AAAA" }), (err) => err.response.statusCode === 400);
await v.unmount({ mount_point: "node-transit" });

const nobody = vault({ endpoint: process.env.VAULT_ADDR, token: "nonsense" });
await assert.rejects(nobody.read("node/data/app"), (err) => err.response.statusCode === 403 && /permission denied/.test(err.message));
console.log("all done");
