package jose

import (
	"crypto/x509"
	"encoding/base64"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// A Bundle is what vouches for the identities of a SPIFFE trust domain (SPIFFE
// Trust Domain and Bundle, section 4): a JWK set in which each key says for
// which kind of identity it is.
type Bundle struct {
	Keys        *Keys               // of JWT-SVIDs; may be empty
	Authorities []*x509.Certificate // of X.509-SVIDs; may be none
	Refresh     time.Duration       // after which its owner would like it to be fetched again; 0 if it does not say
}

// The values of use in a bundle.
const (
	useJWT  = "jwt-svid"
	useX509 = "x509-svid"
)

// ParseBundle reads a bundle. Keys of a use that is not known are passed over; a
// private key is an error, and so is a bundle that vouches for nobody.
func ParseBundle(b []byte) (Bundle, error) {
	members, raw, err := parseSet(b)
	if err != nil {
		return Bundle{}, err
	}
	var bundle Bundle
	var keys []*Key
	var why error
	for _, one := range raw {
		var says struct {
			Use   string   `json:"use"`
			Chain []string `json:"x5c"`
		}
		switch _, err := parseObject(one, keyMembers); {
		case err != nil:
			why = ErrKey.With("A key of the bundle is not a strict JSON object.").Because(err)
			continue
		case json.Unmarshal(one, &says) != nil:
			continue
		}
		switch says.Use {
		case useJWT:
			k, err := parseKey(one, useJWT)
			if err == error(errPrivate) {
				return Bundle{}, err
			}
			if err != nil || k.ID == "" { // section 4.2.2: it has a kid
				why = err
				continue
			}
			keys = append(keys, k)
		case useX509:
			authority, err := parseAuthority(says.Chain)
			if err != nil {
				why = err
				continue
			}
			bundle.Authorities = append(bundle.Authorities, authority)
		}
	}
	bundle.Keys = NewKeys(keys...)
	if len(keys) == 0 && len(bundle.Authorities) == 0 {
		return Bundle{}, ErrKey.With("The bundle has no key of the use %s or %s that can be used.", useJWT, useX509).Because(why)
	}
	if v, ok := members.get("spiffe_refresh_hint"); ok {
		var seconds int64
		if json.Unmarshal(v, &seconds) == nil && seconds > 0 {
			bundle.Refresh = time.Duration(min(seconds, 24*3600)) * time.Second
		}
	}
	return bundle, nil
}

// parseAuthority reads the one certificate of an authority (section 4.2.3).
func parseAuthority(chain []string) (*x509.Certificate, error) {
	if len(chain) != 1 {
		return nil, ErrKey.With("An authority of a bundle has one certificate, not %d.", len(chain))
	}
	der, err := base64.StdEncoding.Strict().DecodeString(chain[0])
	if err != nil {
		return nil, ErrKey.With("A certificate of the bundle is not in base64.")
	}
	one, err := x509.ParseCertificate(der)
	if err != nil || !one.IsCA {
		return nil, ErrKey.With("A certificate of the bundle is not that of an authority.").Because(err)
	}
	return one, nil
}

// parseSet reads the members of a JWK set, and its keys as they stand there.
func parseSet(b []byte) (members object, raw []jsontext.Value, err error) {
	if len(b) > maxKeySet {
		return members, nil, ErrKey.With("The key set is larger than %d bytes.", maxKeySet)
	}
	if members, err = parseObject(b, keyMembers); err != nil {
		return members, nil, ErrKey.With("The key set is not a strict JSON object.").Because(err)
	}
	v, _ := members.get("keys")
	if v.Kind() != '[' || json.Unmarshal(v, &raw) != nil {
		return members, nil, ErrKey.With(`The key set has no array "keys".`)
	}
	if len(raw) > maxKeys {
		return members, nil, ErrKey.With("The key set has more than %d keys.", maxKeys)
	}
	return members, raw, nil
}
