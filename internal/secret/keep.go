package secret

import (
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Keep is how a secret keeps its versions. Where it says nothing, whoever writes
// may bring what holds then ([Put.Keep]).
type Keep struct {
	MaxVersions int64    `json:"max_versions,omitempty"`         // how many are kept; 0 for what else holds, and all of them otherwise
	CASRequired bool     `json:"cas_required,omitempty"`         // whether a write must say which version it follows
	DeleteAfter Duration `json:"delete_version_after,omitempty"` // how long after it was made a version is deleted by itself; 0 for never
}

// or is what holds when a secret and whoever writes it both say something: the
// secret's word on how many versions are kept, and the stricter of both on the
// rest.
func (k Keep) or(o Keep) Keep {
	if k.MaxVersions == 0 {
		k.MaxVersions = o.MaxVersions
	}
	k.CASRequired = k.CASRequired || o.CASRequired
	if k.DeleteAfter == 0 || o.DeleteAfter != 0 && o.DeleteAfter < k.DeleteAfter {
		k.DeleteAfter = o.DeleteAfter
	}
	return k
}

// A Duration is a time span that is written as 90s, 1h30m or 720h.
type Duration time.Duration

// String is the span as Go writes it.
func (d Duration) String() string { return time.Duration(d).String() }

func (d Duration) micros() int64 { return int64(time.Duration(d) / time.Microsecond) }

// MarshalText is the span as Go writes it.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads a span.
func (d *Duration) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*d = 0
		return nil
	}
	v, err := time.ParseDuration(string(b))
	if err != nil {
		return ErrInvalid.With("A duration is written as 90s, 1h30m or 720h, not %q.", b)
	}
	*d = Duration(v)
	return nil
}

// The bounds of custom metadata, and of how versions are kept.
const (
	maxCustom      = 64
	maxCustomKey   = 128 // bytes
	maxCustomValue = 512
	mostVersions   = 1000
)

// checkKeep says what is wrong with how versions are to be kept, and with custom
// metadata.
func (p *Spec) checkKeep() error {
	switch {
	case p.MaxVersions < 0 || p.MaxVersions > mostVersions:
		return ErrInvalid.With("max_versions is between 0 and %d.", mostVersions)
	case p.DeleteAfter < 0 || p.DeleteAfter != 0 && p.DeleteAfter < Duration(time.Second):
		return ErrInvalid.With("delete_version_after is a second at least.")
	case len(p.Custom) > maxCustom:
		return ErrInvalid.With("custom_metadata has at most %d keys.", maxCustom)
	}
	strange := func(s string) bool {
		return !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
	}
	for k, v := range p.Custom {
		if k == "" || len(k) > maxCustomKey || len(v) > maxCustomValue || strange(k) || strange(v) {
			return ErrInvalid.With("custom_metadata has keys of at most %d bytes and values of at most %d, which can be printed.", maxCustomKey, maxCustomValue)
		}
	}
	return nil
}

// merged is a map with changes made to it. Neither is changed.
func merged(m map[string]string, by map[string]*string) map[string]string {
	if len(by) == 0 {
		return m
	}
	out := make(map[string]string, len(m)+len(by))
	for k, v := range m {
		out[k] = v
	}
	for k, v := range by {
		if v == nil {
			delete(out, k)
		} else {
			out[k] = *v
		}
	}
	return out
}

// at is a version as it is at a time: deleted when that has come.
func (v Version) at(now time.Time) Version {
	if v.State == Live && !v.DeleteAt.IsZero() && !now.Before(v.DeleteAt) {
		v.State, v.DeletedAt = Deleted, v.DeleteAt
	}
	return v
}
