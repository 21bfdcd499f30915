package postgres

import (
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"

	"estover.dev"
	"estover.dev/internal/secret/engine"
)

// iterations are PostgreSQL's own. Fewer would do for secrets of 192 random
// bits, but some clients refuse to log in with fewer (RFC 7677, section 4).
const iterations = 4096

// verifier is what PostgreSQL keeps of a password, in its own notation
// (RFC 5803). Characters beyond ASCII are refused: how they are prepared differs
// between clients.
func verifier(s estover.Secret) (string, error) {
	password := s.Reveal()
	if len(password) == 0 || len(password) > 1000 {
		return "", engine.Refuse("a password has 1 to 1000 characters")
	}
	for _, c := range password {
		if c < ' ' || c > '~' {
			return "", engine.Refuse("a password consists of printable ASCII characters")
		}
	}
	salt := make([]byte, 16)
	_, _ = rand.Read(salt)
	salted, err := pbkdf2.Key(sha256.New, string(password), salt, iterations, sha256.Size)
	if err != nil {
		return "", err
	}
	mac := func(what string) []byte {
		h := hmac.New(sha256.New, salted)
		h.Write([]byte(what))
		return h.Sum(nil)
	}
	stored := sha256.Sum256(mac("Client Key"))
	b64 := base64.StdEncoding.EncodeToString
	return fmt.Sprintf("SCRAM-SHA-256$%d:%s$%s:%s", iterations, b64(salt), b64(stored[:]), b64(mac("Server Key"))), nil
}
