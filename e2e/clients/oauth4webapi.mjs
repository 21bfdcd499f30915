// An agent by itself, with oauth4webapi: every way to authenticate, a token
// bound to a key, and what becomes of a token.
import assert from 'node:assert/strict'
import { readFile } from 'node:fs/promises'
import * as oauth from 'oauth4webapi'

const { ISSUER, CLIENT_ID, CLIENT_SECRET, CLIENT_KEY, RESOURCE, API } = process.env

const issuer = new URL(ISSUER)
const as = await oauth.processDiscoveryResponse(issuer, await oauth.discoveryRequest(issuer, { algorithm: 'oauth2' }))
const client = { client_id: CLIENT_ID }

const jwk = JSON.parse(await readFile(CLIENT_KEY, 'utf8'))
const key = await crypto.subtle.importKey('jwk', jwk, { name: 'ECDSA', namedCurve: 'P-256' }, false, ['sign'])
const byKey = oauth.PrivateKeyJwt({ key, kid: jwk.kid })

async function token(auth, options) {
  const response = await oauth.clientCredentialsGrantRequest(as, client, auth, { resource: RESOURCE, scope: 'customer.read' }, options)
  return oauth.processClientCredentialsResponse(as, client, response)
}

// However the agent authenticates, the token is good for what it asked for.
for (const auth of [oauth.ClientSecretBasic(CLIENT_SECRET), oauth.ClientSecretPost(CLIENT_SECRET), byKey]) {
  const { access_token, token_type, expires_in, scope } = await token(auth)
  assert.equal(token_type, 'bearer')
  assert.equal(scope, 'customer.read')
  assert.ok(expires_in > 840 && expires_in <= 900, `it lives ${expires_in} seconds`)
  const answer = await oauth.protectedResourceRequest(access_token, 'GET', new URL(API))
  assert.equal(answer.status, 200)
  // What a resource of one's own does with it.
  const request = new Request(API, { headers: { authorization: `Bearer ${access_token}` } })
  const claims = await oauth.validateJwtAccessToken(as, request, RESOURCE)
  assert.equal(claims.sub, `agent:${CLIENT_ID}`)
  assert.equal(claims.client_id, CLIENT_ID)
}

// Nonces of the token endpoint and of the resource: the first request brings
// one and is sent again.
const dpop = oauth.DPoP(client, await oauth.generateKeyPair('ES256'))
const again = async (ask) => {
  try {
    return await ask()
  } catch (error) {
    if (!oauth.isDPoPNonceError(error)) throw error
    return await ask()
  }
}
const bound = await again(() => token(byKey, { DPoP: dpop }))
assert.equal(bound.token_type, 'dpop')
const called = await again(() => oauth.protectedResourceRequest(bound.access_token, 'GET', new URL(API), undefined, undefined, { DPoP: dpop }))
assert.equal(called.status, 200)
await assert.rejects(oauth.protectedResourceRequest(bound.access_token, 'GET', new URL(API)), (error) => error.status === 401)

// What the server says of the token, signed.
const signed = { ...client, introspection_signed_response_alg: 'ES256' }
async function introspect(value) {
  const response = await oauth.introspectionRequest(as, signed, byKey, value)
  assert.match(response.headers.get('content-type'), /^application\/token-introspection\+jwt/)
  const claims = await oauth.processIntrospectionResponse(as, signed, response)
  await oauth.validateApplicationLevelSignature(as, response)
  return claims
}
const alive = await introspect(bound.access_token)
assert.equal(alive.active, true)
assert.equal(alive.aud, RESOURCE)
assert.equal(alive.cnf.jkt, await dpop.calculateThumbprint())

await oauth.processRevocationResponse(await oauth.revocationRequest(as, client, byKey, bound.access_token))
assert.equal((await introspect(bound.access_token)).active, false)
await assert.rejects(
  again(() => oauth.protectedResourceRequest(bound.access_token, 'GET', new URL(API), undefined, undefined, { DPoP: dpop })),
  (error) => error instanceof oauth.WWWAuthenticateChallengeError && error.status === 401,
)

// What is refused says why.
for (const [parameters, code] of [
  [{ resource: 'https://elsewhere.example.test' }, 'invalid_target'],
  [{ resource: RESOURCE, scope: 'customer.delete' }, 'invalid_scope'],
]) {
  const response = await oauth.clientCredentialsGrantRequest(as, client, byKey, parameters)
  await assert.rejects(oauth.processClientCredentialsResponse(as, client, response), (error) => error.error === code)
}
