// A resource that is called with a token, and verifies it with jose; and an agent
// that makes its assertions and proofs with it.
import assert from 'node:assert/strict'
import { readFile } from 'node:fs/promises'
import { SignJWT, calculateJwkThumbprint, createRemoteJWKSet, errors, exportJWK, generateKeyPair, importJWK, jwtVerify } from 'jose'

const { ISSUER, CLIENT_ID, CLIENT_SECRET, CLIENT_KEY, RESOURCE, API } = process.env

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

// What the server says of it, signed.
const told = await fetch(metadata.introspection_endpoint, {
  method: 'POST',
  headers: { authorization, accept: 'application/token-introspection+jwt' },
  body: new URLSearchParams({ token: access_token }),
})
const signed = await told.text()
const answer = await jwtVerify(signed, keys, { issuer: ISSUER, audience: CLIENT_ID, typ: 'token-introspection+jwt', algorithms: ['ES256'] })
assert.equal(answer.payload.token_introspection.active, true)
assert.equal(answer.payload.token_introspection.sub, claims.sub)
await assert.rejects(verify(signed), errors.JWTClaimValidationFailed) // it is no access token

// An agent by its key, with a token that is bound to another one.
const own = JSON.parse(await readFile(CLIENT_KEY, 'utf8'))
const assertion = async () => new SignJWT().setProtectedHeader({ alg: 'ES256', kid: own.kid })
  .setIssuer(CLIENT_ID).setSubject(CLIENT_ID).setAudience(ISSUER).setJti(crypto.randomUUID()).setIssuedAt().setExpirationTime('1m').sign(await importJWK(own, 'ES256'))
const { publicKey, privateKey } = await generateKeyPair('ES256')
const jwk = await exportJWK(publicKey)
const proof = (htu, nonce) => new SignJWT({ htm: 'POST', htu, nonce })
  .setProtectedHeader({ alg: 'ES256', typ: 'dpop+jwt', jwk }).setJti(crypto.randomUUID()).setIssuedAt().sign(privateKey)
const ask = async (nonce) => fetch(metadata.token_endpoint, {
  method: 'POST',
  headers: { dpop: await proof(metadata.token_endpoint, nonce) },
  body: new URLSearchParams({
    grant_type: 'client_credentials', resource: RESOURCE, client_assertion: await assertion(),
    client_assertion_type: 'urn:ietf:params:oauth:client-assertion-type:jwt-bearer',
  }),
})
const first = await ask()
assert.equal((await first.json()).error, 'use_dpop_nonce')
const bound = await (await ask(first.headers.get('dpop-nonce'))).json()
assert.equal(bound.token_type, 'DPoP')
assert.equal((await verify(bound.access_token)).cnf.jkt, await calculateJwkThumbprint(jwk))

// Whoever does not ask the server does not hear of a token's end.
const revoked = await fetch(metadata.revocation_endpoint, { method: 'POST', headers: { authorization }, body: new URLSearchParams({ token: access_token }) })
assert.equal(revoked.status, 200)
await verify(access_token)
assert.equal((await fetch(API, { headers: { authorization: `Bearer ${access_token}` } })).status, 401)
