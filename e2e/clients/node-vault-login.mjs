// How a program logs in with node-vault, and what it does then, as its
// documentation shows.
import assert from "node:assert/strict";
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
assert.equal((await admin.write("sys/leases/renew", { lease_id: creds.lease_id })).lease_id, creds.lease_id);
await admin.write("sys/leases/revoke", { lease_id: creds.lease_id, sync: true }); // without sync the answer is 202, which this client takes for an error

await app.tokenRevokeSelf();
await assert.rejects(app.tokenLookupSelf(), (err) => err.response.statusCode === 403);
console.log("all done");
