// An agent that takes up the token of another, with oauth4webapi: the token of
// the one is bound to its key, and that of the other to the other's.
import assert from 'node:assert/strict'
import * as oauth from 'oauth4webapi'

const { ISSUER, CLIENT_ID, CLIENT_SECRET, HELPER_ID, HELPER_SECRET, RESOURCE, API } = process.env

const issuer = new URL(ISSUER)
const as = await oauth.processDiscoveryResponse(issuer, await oauth.discoveryRequest(issuer, { algorithm: 'oauth2' }))
const again = async (ask) => {
  try {
    return await ask()
  } catch (error) {
    if (!oauth.isDPoPNonceError(error)) throw error
    return await ask()
  }
}
const call = (token, options) => again(() => oauth.protectedResourceRequest(token, 'GET', new URL(API), undefined, undefined, options))

const first = { client_id: CLIENT_ID }
async function own(options) {
  const response = await oauth.clientCredentialsGrantRequest(as, first, oauth.ClientSecretBasic(CLIENT_SECRET), { resource: RESOURCE }, options)
  return oauth.processClientCredentialsResponse(as, first, response)
}

const helper = { client_id: HELPER_ID }
const auth = oauth.ClientSecretBasic(HELPER_SECRET)
async function takeUp(subject, parameters, options) {
  const response = await oauth.genericTokenEndpointRequest(as, helper, auth, 'urn:ietf:params:oauth:grant-type:token-exchange', {
    subject_token: subject, subject_token_type: 'urn:ietf:params:oauth:token-type:access_token', resource: RESOURCE, ...parameters,
  }, options)
  return oauth.processGenericTokenEndpointResponse(as, helper, response)
}

const { access_token } = await own()
const plain = await takeUp(access_token, { scope: 'customer.read' })
assert.equal(plain.issued_token_type, 'urn:ietf:params:oauth:token-type:access_token')
assert.equal(plain.scope, 'customer.read')
assert.equal((await call(plain.access_token)).status, 200)

// A key of the helper's own is proved at the exchange and at each call.
const DPoP = oauth.DPoP(helper, await oauth.generateKeyPair('ES256'))
const bound = await again(() => takeUp(access_token, { scope: 'customer.read' }, { DPoP }))
assert.equal(bound.token_type, 'dpop')
assert.equal((await call(bound.access_token, { DPoP })).status, 200)
await assert.rejects(call(bound.access_token), (error) => error.status === 401)

const request = new Request(API, { headers: { authorization: `Bearer ${plain.access_token}` } })
const claims = await oauth.validateJwtAccessToken(as, request, RESOURCE)
assert.equal(claims.sub, `agent:${CLIENT_ID}`)
assert.equal(claims.act.sub, `agent:${HELPER_ID}`)

// A token that is bound is not taken up by who shows no key, and nothing widens.
const tied = oauth.DPoP(first, await oauth.generateKeyPair('ES256'))
const kept = await again(() => own({ DPoP: tied }))
const refused = (ask, code) => assert.rejects(ask, (error) => error.error === code)
await refused(takeUp(kept.access_token, { scope: 'customer.read' }), 'invalid_grant')
await refused(takeUp(access_token, { scope: 'customer.delete' }), 'invalid_scope')
await refused(takeUp(access_token, { resource: 'https://elsewhere.example.test' }), 'invalid_target')
