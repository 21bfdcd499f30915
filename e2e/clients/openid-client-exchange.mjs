// An agent that takes up the token of another, with openid-client.
import assert from 'node:assert/strict'
import * as client from 'openid-client'

const { ISSUER, CLIENT_ID, CLIENT_SECRET, HELPER_ID, HELPER_SECRET, RESOURCE, API } = process.env

// The one hands on its token.
const first = await client.discovery(new URL(ISSUER), CLIENT_ID, CLIENT_SECRET)
const { access_token } = await client.clientCredentialsGrant(first, { resource: RESOURCE })

// The other takes it up, for less.
const helper = await client.discovery(new URL(ISSUER), HELPER_ID, HELPER_SECRET)
const token = await client.genericGrantRequest(helper, 'urn:ietf:params:oauth:grant-type:token-exchange', {
  subject_token: access_token, subject_token_type: 'urn:ietf:params:oauth:token-type:access_token',
  resource: RESOURCE, scope: 'customer.read',
})

assert.equal(token.issued_token_type, 'urn:ietf:params:oauth:token-type:access_token')
assert.equal(token.scope, 'customer.read')
assert.equal((await client.fetchProtectedResource(helper, token.access_token, new URL(API), 'GET')).status, 200)
const { sub, act } = await client.tokenIntrospection(helper, token.access_token)
assert.equal(sub, `agent:${CLIENT_ID}`)
assert.equal(act.sub, `agent:${HELPER_ID}`)

// What ends the one ends the other.
await client.tokenRevocation(first, access_token)
await assert.rejects(client.fetchProtectedResource(helper, token.access_token, new URL(API), 'GET'), (error) => error.status === 401)
