// Three resources that verify tokens with jose. Each line that comes in is a token,
// and the line that goes out is what each of them makes of it.
import { createInterface } from 'node:readline'
import { createRemoteJWKSet, jwtVerify } from 'jose'

const { ISSUER, RESOURCE } = process.env

const { jwks_uri } = await (await fetch(`${ISSUER}/.well-known/oauth-authorization-server`)).json()
const keySet = (options) => createRemoteJWKSet(new URL(jwks_uri), { timeoutDuration: 30_000, ...options })

const waits = keySet({ cooldownDuration: 600_000 }) // does not fetch again for a key that it does not know
const asks = keySet({ cooldownDuration: 0 }) // does so at once

async function verdict(token, keys) {
  try {
    await jwtVerify(token, keys, { issuer: ISSUER, audience: RESOURCE, typ: 'at+jwt', algorithms: ['ES256'] })
    return 'good'
  } catch (error) {
    return error.code
  }
}

for await (const token of createInterface({ input: process.stdin })) {
  const verdicts = {
    waits: await verdict(token, waits),
    asks: await verdict(token, asks),
    fresh: await verdict(token, keySet()), // has no copy yet
  }
  console.log(JSON.stringify(verdicts))
}
