package report

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestUnusedMethods: the linker leaves out of twtrace what is not used. It can't
// where something that is linked may call methods by names that only a run tells:
// then it keeps every exported method of every type that is made an interface, and
// all that these use. Executing a text/template or html/template does that; it made
// the page once, at the price of 2.9 of 22 MB, and that price rises with each
// library. To import them costs nothing, and cobra and gomponents do; so the linker
// is asked, who marks the functions that take its freedom. The tag, which the Makefile
// and the Dockerfile have as well, leaves out the pages of gRPC, which execute some.
func TestUnusedMethods(t *testing.T) {
	build := exec.Command("go", "build", "-tags=grpcnotrace", "-ldflags=-dumpdep", "-o", filepath.Join(t.TempDir(), "twtrace"), "../../cmd/twtrace")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	dump, err := build.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %.1000s", err, dump)
	}
	if !strings.Contains(string(dump), "main.main -> main.run") || !strings.Contains(string(dump), " <UsedInIface>") {
		t.Fatalf("the linker does not tell what uses what: %.1000s", dump)
	}
	names := regexp.MustCompile(`\S+ <ReflectMethod>`).FindAllString(string(dump), -1)
	slices.Sort(names)
	if names = slices.Compact(names); len(names) > 0 {
		t.Errorf("no unused method can be left out, because of one of these: %s", strings.Join(names, ", "))
	}
}
