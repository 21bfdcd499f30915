// How a program logs in with node-vault, and what it does then, as its
// documentation shows.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { generateKeyPairSync, sign } from "node:crypto";
import vault from "node-vault";

const endpoint = process.env.VAULT_ADDR;
const admin = vault({ endpoint, token: process.env.VAULT_TOKEN });

await admin.addPolicy({ name: "node-app", policy: 'path "cubbyhole/*" { capabilities = ["create", "read", "list"] }' });
await admin.enableAuth({ mount_point: "node-approle", type: "approle" });
await admin.addApproleRole({ mount_point: "node-approle", role_name: "app", policies: "node-app", token_ttl: 300, secret_id_num_uses: 2 });
const role = await admin.getApproleRole({ mount_point: "node-approle", role_name: "app" });
assert.deepEqual(role.data.policies, ["node-app"]); // the name that was used reads back
assert.deepEqual(role.data.token_policies, ["node-app"]);
assert.equal(role.data.token_ttl, 300);
const { data: { role_id } } = await admin.getApproleRoleId({ mount_point: "node-approle", role_name: "app" });
const { data: { secret_id, secret_id_accessor } } = await admin.getApproleRoleSecret({ mount_point: "node-approle", role_name: "app" });
const looked = await admin.approleSecretAccessorLookup({ mount_point: "node-approle", role_name: "app", secret_id_accessor });
assert.equal(looked.data.secret_id_num_uses, 2);

const app = vault({ endpoint });
const login = await app.approleLogin({ mount_point: "node-approle", role_id, secret_id });
assert.deepEqual(login.auth.policies, ["default", "node-app"]);
assert.equal(app.token, login.auth.client_token);
assert.equal((await app.tokenLookupSelf()).data.path, "auth/node-approle/login");
assert.equal((await app.tokenRenewSelf({ increment: "2m" })).auth.lease_duration, 120);
await app.write("cubbyhole/a", { n: 1 });
assert.deepEqual((await app.read("cubbyhole/a")).data, { n: 1 });
await assert.rejects(app.read("sys/mounts"), (err) => err.response.statusCode === 403);
await assert.rejects(vault({ endpoint }).approleLogin({ mount_point: "node-approle", role_id, secret_id: "no" }), /invalid role or secret ID/);

// What is wrapped on its way, and is unwrapped once.
const wrapped = await admin.read("auth/node-approle/role/app/role-id", { headers: { "X-Vault-Wrap-TTL": "60s" } });
assert.equal(wrapped.data, null);
assert.equal(wrapped.wrap_info.ttl, 60);
const carrier = vault({ endpoint });
assert.equal((await carrier.unwrap({ token: wrapped.wrap_info.token })).data.role_id, role_id);
await assert.rejects(carrier.unwrap({ token: wrapped.wrap_info.token }), (err) => err.response.statusCode === 400);

// A job that shows a JWT.
const { publicKey, privateKey } = generateKeyPairSync("ec", { namedCurve: "P-256" });
const jwt = (key, claims) => {
  const part = (v) => Buffer.from(JSON.stringify(v)).toString("base64url");
  const now = Math.floor(Date.now() / 1000);
  const text = `${part({ alg: "ES256", typ: "JWT" })}.${part({ iss: "https://ci.example", sub: "job-7", aud: "vault", iat: now, exp: now + 300, ...claims })}`;
  return `${text}.${sign("sha256", Buffer.from(text), { key, dsaEncoding: "ieee-p1363" }).toString("base64url")}`;
};
await admin.enableAuth({ mount_point: "node-jwt", type: "jwt" });
await admin.write("auth/node-jwt/config", { jwt_validation_pubkeys: [publicKey.export({ type: "spki", format: "pem" })], bound_issuer: "https://ci.example" });
await admin.write("auth/node-jwt/role/deploy", { role_type: "jwt", user_claim: "sub", bound_audiences: ["vault"], bound_subject: "job-7", token_policies: ["node-app"] });
const job = await vault({ endpoint }).write("auth/node-jwt/login", { role: "deploy", jwt: jwt(privateKey, {}) });
assert.deepEqual(job.auth.policies, ["default", "node-app"]);
assert.equal(job.auth.metadata.role, "deploy");
assert.equal((await vault({ endpoint, token: job.auth.client_token }).tokenLookupSelf()).data.path, "auth/node-jwt/login");
const stranger = generateKeyPairSync("ec", { namedCurve: "P-256" }).privateKey;
for (const bad of [jwt(stranger, {}), jwt(privateKey, { sub: "job-8" }), jwt(privateKey, { aud: "others" }), jwt(privateKey, { exp: 1 })]) {
  await assert.rejects(vault({ endpoint }).write("auth/node-jwt/login", { role: "deploy", jwt: bad }), (err) => [400, 403].includes(err.response.statusCode));
}

// The client takes up the token that it gets.
const child = await vault({ endpoint, token: admin.token }).tokenCreate({ policies: ["node-app"], ttl: "10m", num_uses: 5 });
assert.equal((await admin.tokenLookupAccessor({ accessor: child.auth.accessor })).data.num_uses, 5);
await admin.tokenRevokeAccessor({ accessor: child.auth.accessor });
await assert.rejects(vault({ endpoint, token: child.auth.client_token }).tokenLookupSelf(), (err) => err.response.statusCode === 403);

await admin.mount({ mount_point: "node-db", type: "database" });
await admin.write("node-db/config/crm", {
  plugin_name: "postgresql-database-plugin", allowed_roles: "app", username: "estover", password: process.env.PG_PASSWORD,
  connection_url: `postgresql://{{username}}:{{password}}@${process.env.PG}?sslmode=disable`,
});
await admin.write("node-db/roles/app", {
  db_name: "crm", default_ttl: "1h",
  creation_statements: `CREATE ROLE "{{name}}" WITH LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'; GRANT readers TO "{{name}}";`,
});
const creds = await admin.read("node-db/creds/app");
assert.ok(creds.lease_id.startsWith("node-db/creds/app/"));
assert.ok(creds.data.username && creds.data.password);
const opens = () => {
  const [address, database] = process.env.PG.split("/");
  const [host, port] = address.split(":");
  const env = { PATH: process.env.PATH, PGPASSWORD: creds.data.password };
  const args = ["-h", host, "-p", port, "-U", creds.data.username, "-d", database, "-Atc", "select count(*) from customer"];
  return execFileSync("psql", args, { env, encoding: "utf8", stdio: ["ignore", "pipe", "pipe"] }).trim();
};
assert.match(opens(), /^\d+$/);
assert.equal((await admin.write("sys/leases/renew", { lease_id: creds.lease_id })).lease_id, creds.lease_id);
await admin.write("sys/leases/revoke", { lease_id: creds.lease_id, sync: true }); // without sync the answer is 202, which this client takes for an error
assert.throws(opens);

await app.tokenRevokeSelf();
await assert.rejects(app.tokenLookupSelf(), (err) => err.response.statusCode === 403);
console.log("all done");
