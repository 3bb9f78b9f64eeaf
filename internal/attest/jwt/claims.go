package jwt

import (
	"encoding/json"
	"strings"

	"github.com/bailment/bailment/internal/attest"
)

// maxList is the most elements of a list among claims.
const maxList = 64

// Pick makes texts of the named claims, for package attest, which knows no other values. Numbers become their decimal text (only whole
// ones: they are IDs), true and false "true" and "false", and what is missing or null "", so that a rule that reads one never fails for
// want of it. Anything else under one of the names is token-invalid: it is not what the platform documents.
func Pick(claims map[string]any, names ...string) (map[string]any, error) {
	out := make(map[string]any, len(names))
	for _, name := range names {
		value, ok := Text(claims[name])
		if !ok {
			return nil, invalid("the token's %q is not what its issuer documents: a printable text, a whole number, true or false", name)
		}
		out[name] = value
	}
	return out, nil
}

// List is a claim that is a list of what Pick takes; empty if it is missing or null.
func List(claims map[string]any, name string) ([]any, error) {
	list, ok := claims[name].([]any)
	if !ok && claims[name] != nil || len(list) > maxList {
		return nil, invalid("the token's %q is not a list of at most %d elements", name, maxList)
	}
	out := make([]any, len(list))
	for i, element := range list {
		if out[i], ok = Text(element); !ok {
			return nil, invalid("the token's %q holds what is no printable text, whole number, true or false", name)
		}
	}
	return out, nil
}

// Object is a claim that is an object: nil if it is missing or null, token-invalid if it is something else.
func Object(claims map[string]any, name string) (map[string]any, error) {
	switch value := claims[name].(type) {
	case nil:
		return nil, nil
	case map[string]any:
		return value, nil
	}
	return nil, invalid("the token's %q is not an object", name)
}

// Text is one value as Pick makes it of it.
func Text(value any) (text string, ok bool) {
	switch value := value.(type) {
	case nil:
		return "", true
	case string:
		return value, attest.CheckClaimText(value) == nil
	case bool:
		if value {
			return "true", true
		}
		return "false", true
	case json.Number:
		s := string(value)
		return s, len(s) <= 20 && digits(strings.TrimPrefix(s, "-"))
	}
	return "", false
}
