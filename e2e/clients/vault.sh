# What people do with curl, as the documentation of Vault shows it.
set -eu
vault() { # METHOD PATH [BODY…]: the body of the answer, and its status on a line of its own
	method=$1 path=$2
	shift 2
	curl --silent --show-error --request "$method" --header "X-Vault-Token: $VAULT_TOKEN" "$@" --write-out '\n%{http_code}\n' "$VAULT_ADDR/v1/$path"
}
expect() { # WORDS ANSWER
	case "$2" in
	*"$1"*) ;;
	*) echo "no $1 in: $2" >&2 && exit 1 ;;
	esac
}

expect '"sealed":false' "$(curl --silent "$VAULT_ADDR/v1/sys/health")"
expect 204 "$(vault POST sys/mounts/curl --data '{"type":"kv-v2"}')"
expect '"version":1' "$(vault POST curl/data/a --data '{"data":{"password":"s3cr3t","n":1.0}}')"
expect '"data":{"password":"s3cr3t","n":1.0}' "$(vault GET curl/data/a)"
expect '"version":2' "$(vault PATCH curl/data/a --header 'Content-Type: application/merge-patch+json' --data '{"data":{"n":null}}')"
expect '"data":{"password":"s3cr3t"}' "$(curl --silent --header "Authorization: Bearer $VAULT_TOKEN" "$VAULT_ADDR/v1/curl/data/a")"
expect '"keys":["a"]' "$(vault LIST curl/metadata)"
expect '"keys":["a"]' "$(vault GET 'curl/metadata/?list=true')"
expect 204 "$(vault POST curl/delete/a --data versions=1,2)"
expect 404 "$(vault GET curl/data/a)"
expect '"destroyed":false' "$(vault GET curl/data/a)"
expect '{"errors":[]}' "$(vault GET curl/data/nothing)"
expect '{"errors":["permission denied"]}' "$(VAULT_TOKEN=wrong vault GET curl/data/a)"
expect 403 "$(VAULT_TOKEN=wrong vault GET curl/data/a)"
expect 404 "$(curl --silent --output /dev/null --write-out '%{http_code}' --header "X-Vault-Token: $VAULT_TOKEN" --head "$VAULT_ADDR/v1/curl/data/a")"
expect 204 "$(vault DELETE sys/mounts/curl)"
echo all done
