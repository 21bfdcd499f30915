#!/bin/sh
# An agent by itself, with curl, as the guides have it.
set -eu

# By its secret.
TOKEN=$(curl -sSf -u "$CLIENT_ID:$CLIENT_SECRET" -d grant_type=client_credentials -d resource="$RESOURCE" "$ISSUER/oauth/token" | jq -r .access_token)
curl -sSf -H "Authorization: Bearer $TOKEN" "$API" | grep -q 'Ada Lindqvist'

# With the secret in the form.
TOKEN=$(curl -sSf -d grant_type=client_credentials -d resource="$RESOURCE" -d client_id="$CLIENT_ID" --data-urlencode client_secret="$CLIENT_SECRET" \
  "$ISSUER/oauth/token" | jq -r .access_token)
curl -sSf -u "$CLIENT_ID:$CLIENT_SECRET" -d token="$TOKEN" "$ISSUER/oauth/introspect" | grep -q '"active":true'
curl -sSf -u "$CLIENT_ID:$CLIENT_SECRET" -d token="$TOKEN" "$ISSUER/oauth/revoke"
curl -sSf -u "$CLIENT_ID:$CLIENT_SECRET" -d token="$TOKEN" "$ISSUER/oauth/introspect" | grep -qx '{"active":false}'
[ "$(curl -sS -o /dev/null -w '%{http_code}' -H "Authorization: Bearer $TOKEN" "$API")" = 401 ]

# By a certificate with its key, to which the token is bound.
TOKEN=$(curl -sSf --cert "$CERTIFICATE" --key "$CERTIFICATE_KEY" -d grant_type=client_credentials -d client_id="$CLIENT_ID" -d resource="$RESOURCE" \
  "$ISSUER/oauth/token" | jq -r .access_token)
curl -sSf --cert "$CERTIFICATE" --key "$CERTIFICATE_KEY" -H "Authorization: Bearer $TOKEN" "$API" | grep -q 'Ada Lindqvist'
[ "$(curl -sS -o /dev/null -w '%{http_code}' -H "Authorization: Bearer $TOKEN" "$API")" = 401 ]
