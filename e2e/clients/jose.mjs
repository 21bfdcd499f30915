// A resource that is called with a token, and verifies it with jose.
import assert from 'node:assert/strict'
import { createRemoteJWKSet, errors, jwtVerify } from 'jose'

const { ISSUER, CLIENT_ID, CLIENT_SECRET, RESOURCE, API } = process.env

const metadata = await (await fetch(`${ISSUER}/.well-known/openid-configuration`)).json()
const keys = createRemoteJWKSet(new URL(metadata.jwks_uri))

async function verify(token) {
  const { payload } = await jwtVerify(token, keys, { issuer: ISSUER, audience: RESOURCE, typ: 'at+jwt', algorithms: ['ES256'] })
  return payload
}

// What an agent brings.
const authorization = `Basic ${btoa(`${CLIENT_ID}:${CLIENT_SECRET}`)}`
const response = await fetch(metadata.token_endpoint, {
  method: 'POST',
  headers: { authorization },
  body: new URLSearchParams({ grant_type: 'client_credentials', resource: RESOURCE, scope: 'customer.read' }),
})
assert.equal(response.status, 200)
const { access_token } = await response.json()

const claims = await verify(access_token)
assert.equal(claims.sub, `agent:${CLIENT_ID}`)
assert.equal(claims.client_id, CLIENT_ID)
assert.equal(claims.scope, 'customer.read')
assert.equal(claims.aud, RESOURCE)
assert.equal(claims.exp - claims.iat, 900)

// A token that was changed, and one that is for another resource.
const [header, , signature] = access_token.split('.')
const more = Buffer.from(JSON.stringify({ ...claims, scope: 'customer.read customer.delete' })).toString('base64url')
await assert.rejects(verify([header, more, signature].join('.')), errors.JWSSignatureVerificationFailed)
await assert.rejects(jwtVerify(access_token, keys, { audience: 'https://elsewhere.example.test' }), errors.JWTClaimValidationFailed)

// Whoever does not ask the server does not hear of a token's end.
const revoked = await fetch(metadata.revocation_endpoint, { method: 'POST', headers: { authorization }, body: new URLSearchParams({ token: access_token }) })
assert.equal(revoked.status, 200)
await verify(access_token)
assert.equal((await fetch(API, { headers: { authorization: `Bearer ${access_token}` } })).status, 401)
