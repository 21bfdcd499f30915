// An agent by itself, with openid-client.
import assert from 'node:assert/strict'
import { readFile } from 'node:fs/promises'
import * as client from 'openid-client'

const { ISSUER, CLIENT_ID, CLIENT_SECRET, CLIENT_KEY, RESOURCE, API } = process.env

// By its secret.
const bySecret = await client.discovery(new URL(ISSUER), CLIENT_ID, CLIENT_SECRET)
const token = await client.clientCredentialsGrant(bySecret, { resource: RESOURCE, scope: 'customer.read' })
const answer = await client.fetchProtectedResource(bySecret, token.access_token, new URL(API), 'GET')

assert.equal(bySecret.serverMetadata().issuer, ISSUER)
assert.equal(answer.status, 200)
assert.equal(token.token_type, 'bearer')
assert.equal(token.scope, 'customer.read')
assert.ok(token.expiresIn() > 840 && token.expiresIn() <= 900, `it lives ${token.expiresIn()} seconds`)

// By its key, with a token that is bound to another key.
const jwk = JSON.parse(await readFile(CLIENT_KEY, 'utf8'))
const key = await crypto.subtle.importKey('jwk', jwk, { name: 'ECDSA', namedCurve: 'P-256' }, false, ['sign'])
const byKey = await client.discovery(new URL(ISSUER), CLIENT_ID, undefined, client.PrivateKeyJwt({ key, kid: jwk.kid }))
const DPoP = client.getDPoPHandle(byKey, await client.randomDPoPKeyPair('ES256'))
const bound = await client.clientCredentialsGrant(byKey, { resource: RESOURCE }, { DPoP })
const called = await client.fetchProtectedResource(byKey, bound.access_token, new URL(API), 'GET', undefined, undefined, { DPoP })

assert.equal(bound.token_type, 'dpop')
assert.equal(called.status, 200)
await assert.rejects(client.fetchProtectedResource(byKey, bound.access_token, new URL(API), 'GET'), (error) => error.status === 401)

// What the server says of the token, and its end.
const alive = await client.tokenIntrospection(byKey, bound.access_token)
assert.equal(alive.active, true)
assert.equal(alive.sub, `agent:${CLIENT_ID}`)
assert.equal(alive.cnf.jkt, await DPoP.calculateThumbprint())
await client.tokenRevocation(byKey, bound.access_token)
assert.equal((await client.tokenIntrospection(byKey, bound.access_token)).active, false)
await assert.rejects(client.clientCredentialsGrant(byKey, { resource: 'https://elsewhere.example.test' }), (error) => error.error === 'invalid_target')
