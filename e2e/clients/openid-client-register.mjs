// A client that registers itself with openid-client, and then acts for itself.
import assert from 'node:assert/strict'
import * as client from 'openid-client'

const { ISSUER, INITIAL_TOKEN, REGISTRATION, RESOURCE, API } = process.env

const metadata = {
  client_name: 'Desk assistant',
  grant_types: ['client_credentials'],
  response_types: [],
  token_endpoint_auth_method: 'client_secret_post', // what it does by itself
}
const register = (initialAccessToken) => client.dynamicClientRegistration(new URL(ISSUER), metadata, undefined, { initialAccessToken })

if (REGISTRATION === 'off') {
  await assert.rejects(register(INITIAL_TOKEN), /registration_endpoint/)
  const answer = await fetch(`${ISSUER}/oauth/register`, { method: 'POST', headers: { authorization: `Bearer ${INITIAL_TOKEN}`, 'content-type': 'application/json' }, body: '{}' })
  assert.equal(answer.status, 404)
  assert.match((await answer.json()).error_description, /estover registration on/)
} else {
  await assert.rejects(register('est_it_wrong'), (error) => error.status === 401)
  const config = await register(INITIAL_TOKEN)
  const { client_id, client_name, registration_client_uri, registration_access_token } = config.clientMetadata()
  assert.equal(client_name, 'Desk assistant')
  assert.equal(registration_client_uri, `${ISSUER}/oauth/register/${client_id}`)
  const token = await client.clientCredentialsGrant(config, { resource: RESOURCE, scope: 'customer.read' })
  const answer = await client.fetchProtectedResource(config, token.access_token, new URL(API), 'GET')
  assert.equal(answer.status, 200)
  await assert.rejects(register(INITIAL_TOKEN), (error) => error.status === 401) // good once

  const headers = { authorization: `Bearer ${registration_access_token}` }
  assert.equal((await (await fetch(registration_client_uri, { headers })).json()).client_id, client_id)
  assert.equal((await fetch(registration_client_uri, { method: 'DELETE', headers })).status, 204)
  await assert.rejects(client.clientCredentialsGrant(config, { resource: RESOURCE }), (error) => error.error === 'invalid_client')
}
