package faults

import (
	"os"
	"testing"

	"github.com/bailment/bailment/test/site"
	"github.com/bailment/bailment/test/site/sitetest"
)

// builder makes the real binary, with a planted defect if tags say so.
var builder sitetest.Builder

func TestMain(m *testing.M) { os.Exit(builder.Main(m)) }

// newSite founds an environment. dir may be on a special file system; empty: a temporary directory.
func newSite(t testing.TB, tags, dir string) *sitetest.Site {
	t.Helper()
	return sitetest.New(t, site.Options{Name: "faults.example", Bin: builder.Binary(t, tags), Dir: dir})
}
