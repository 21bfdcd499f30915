// An OpenID provider on loopback that is not ours: a client whose refresh tokens
// are given out anew with each use, and whose people sign in with any name.
import { Provider } from "oidc-provider";

const { ISSUER, PORT, REDIRECT, SECRET } = process.env;
const provider = new Provider(ISSUER, {
  clients: [{
    client_id: "estover", client_secret: SECRET, redirect_uris: [REDIRECT], grant_types: ["authorization_code", "refresh_token", "client_credentials"],
    response_types: ["code"], token_endpoint_auth_method: "client_secret_basic",
  }],
  features: { revocation: { enabled: true }, devInteractions: { enabled: true }, clientCredentials: { enabled: true }, introspection: { enabled: true } },
  // What is said of a person stands in userinfo, and not in the ID token.
  claims: { openid: ["sub"], team: ["email", "groups"] },
  scopes: ["openid", "offline_access", "team"],
  findAccount: (ctx, id) => ({ accountId: id, claims: async () => ({ sub: id, email: `${id}@example.com`, groups: ["dev", "ops"] }) }),
  rotateRefreshToken: true,
  pkce: { required: () => true },
  ttl: { AccessToken: 600, AuthorizationCode: 60, RefreshToken: 3600, Grant: 3600, Interaction: 600, Session: 3600 },
  cookies: { keys: ["a key for a test"] },
});
for (const event of ["grant.success", "grant.error", "grant.revoked", "refresh_token.consumed", "refresh_token.destroyed"]) {
  provider.on(event, (ctx, err) => console.log(event, ctx?.oidc?.params?.grant_type ?? "", err?.message ?? ""));
}
provider.listen(Number(PORT), "127.0.0.1", () => console.log("listening"));
