package jwt

import (
	"encoding/json"
	"strings"

	"github.com/bailment/bailment/internal/attest"
)

// Pick makes of the named claims what package attest calls claims: texts, and lists of texts. Numbers become their decimal text (only
// whole ones: they are IDs), true and false "true" and "false", and what is missing or null "", so that a rule that reads one never
// fails for want of it. Anything else under one of the names is token-invalid: it is not what the platform documents.
func Pick(claims map[string]any, names ...string) (map[string]any, error) {
	out := make(map[string]any, len(names))
	for _, name := range names {
		value, err := text(claims[name])
		if err != nil {
			return nil, invalid("the token's %q is not what its issuer documents: a printable text, a whole number, true, false, or a list of these", name)
		}
		out[name] = value
	}
	return out, nil
}

// Object is a claim that is an object: nil if it is missing, token-invalid if it is something else.
func Object(claims map[string]any, name string) (map[string]any, error) {
	switch value := claims[name].(type) {
	case nil:
		return nil, nil
	case map[string]any:
		return value, nil
	}
	return nil, invalid("the token's %q is not an object", name)
}

func text(value any) (any, error) {
	switch value := value.(type) {
	case nil:
		return "", nil
	case string:
		return value, attest.CheckClaimText(value)
	case bool:
		if value {
			return "true", nil
		}
		return "false", nil
	case json.Number:
		if s := string(value); len(s) <= 20 && digits(strings.TrimPrefix(s, "-")) {
			return s, nil
		}
	case []any:
		out := make([]any, len(value))
		for i, element := range value {
			if _, ok := element.([]any); ok {
				return nil, invalid("a list within a list")
			}
			var err error
			if out[i], err = text(element); err != nil {
				return nil, err
			}
		}
		return out, nil
	}
	return nil, invalid("not a text")
}
