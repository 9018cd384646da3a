// Package deploy_test has the image and the manifests prove themselves: by
// Kubernetes' own schemas, by Docker, and by what twtrace then sees.
package deploy_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"
)

// kubernetes is the release whose schemas the manifests must fit. Its OpenAPI
// documents are what an API server of it publishes. They are read from the module;
// nothing of it is built.
const kubernetes = "k8s.io/kubernetes@v1.37.2"

// TestManifests: what is applied is what Kubernetes knows, by kustomize as kubectl
// has it.
func TestManifests(t *testing.T) {
	schemas := newSchemas(t)
	for path, want := range map[string]string{
		"debug-pod.yaml":           "Pod",
		"base":                     "Namespace PriorityClass DaemonSet",
		"overlays/aks":             "Namespace PriorityClass DaemonSet",
		"overlays/least-privilege": "Namespace PriorityClass DaemonSet",
	} {
		t.Run(path, func(t *testing.T) {
			objects := render(t, path)
			var kinds []string
			for _, object := range objects {
				kinds = append(kinds, object["kind"].(string))
				if err := schemas.validate(object); err != nil {
					t.Error(err)
				}
				if spec := podSpec(t, object); spec != nil {
					spec.check(t)
				}
			}
			slices.Sort(kinds)
			wanted := strings.Fields(want)
			slices.Sort(wanted)
			if !slices.Equal(kinds, wanted) {
				t.Errorf("kinds %v, want %v", kinds, wanted)
			}
		})
	}
}

// TestSchemas: what a manifest can get wrong is found.
func TestSchemas(t *testing.T) {
	schemas := newSchemas(t)
	for name, tt := range map[string]struct {
		edit func(spec, container map[string]any)
		want string
	}{
		"nothing":              {func(_, _ map[string]any) {}, ""},
		"unknown field":        {func(_, c map[string]any) { c["livenessprobe"] = c["livenessProbe"] }, "'livenessprobe' not allowed"},
		"unknown deeper":       {func(_, c map[string]any) { c["securityContext"].(map[string]any)["privilege"] = true }, "'privilege' not allowed"},
		"wrong type":           {func(s, _ map[string]any) { s["terminationGracePeriodSeconds"] = "30" }, "got string, want integer"},
		"wrong type in a list": {func(_, c map[string]any) { c["args"] = []any{"serve", 1.0} }, "got number, want string"},
		"missing in container": {func(_, c map[string]any) { delete(c, "name") }, "missing property 'name'"},
		"missing containers":   {func(s, _ map[string]any) { delete(s, "containers") }, "missing property 'containers'"},
	} {
		t.Run(name, func(t *testing.T) {
			object := render(t, "debug-pod.yaml")[0]
			spec := object["spec"].(map[string]any)
			tt.edit(spec, spec["containers"].([]any)[0].(map[string]any))
			err := schemas.validate(object)
			if tt.want == "" != (err == nil) || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
	if err := schemas.validate(map[string]any{"apiVersion": "apps/v1", "kind": "DeamonSet"}); err == nil {
		t.Error("there is a kind DeamonSet")
	}
}

// TestArgs: the flags of the manifests and of the commands in the documents exist.
func TestArgs(t *testing.T) {
	twtrace := filepath.Join(t.TempDir(), "twtrace")
	if out, err := exec.Command("go", "build", "-o", twtrace, "../cmd/twtrace").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	commands := map[string][]string{}
	for _, path := range []string{"debug-pod.yaml", "base"} {
		for _, object := range render(t, path) {
			if spec := podSpec(t, object); spec != nil {
				commands[path] = spec.Containers[0].Args
			}
		}
	}
	for _, path := range []string{"../docs/aks.md", "../docs/image.md"} {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, block := range regexp.MustCompile("(?ms)^```[a-z]*\n(.*?)^```").FindAllSubmatch(text, -1) {
			for _, found := range regexp.MustCompile(`(?m)\btwtrace ((?:-|top|doctor|report|serve).*?)\s*(?:#.*)?$`).FindAllSubmatch(block[1], -1) {
				commands[path+": "+string(found[0])] = strings.Fields(string(found[1]))
			}
		}
	}
	for name, args := range commands {
		// Flags are parsed before help is given.
		out, err := exec.Command(twtrace, append(slices.Clone(args), "--help")...).CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v: %s", name, err, out)
		}
		if command := args[0]; !strings.HasPrefix(command, "-") && !bytes.Contains(out, []byte("\n  twtrace "+command+" ")) {
			t.Errorf("%s: there is no command %s", name, command)
		}
	}
}

// render returns the objects of a manifest, or of a kustomization.
func render(t *testing.T, path string) (objects []map[string]any) {
	t.Helper()
	if strings.HasSuffix(path, ".yaml") {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, document := range strings.Split(string(text), "\n---\n") {
			var object map[string]any
			if err := yaml.UnmarshalStrict([]byte(document), &object); err != nil {
				t.Fatalf("%s: %v", path, err)
			}
			objects = append(objects, object)
		}
		return objects
	}
	rendered, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), path)
	if err != nil {
		t.Fatal(err)
	}
	for _, resource := range rendered.Resources() {
		object, err := resource.Map()
		if err == nil {
			objects = append(objects, object)
			continue
		}
		t.Fatalf("%s: %v", path, err)
	}
	return objects
}

// A pod is what the tests look at of a pod's spec.
type pod struct {
	HostPID    bool
	Containers []struct {
		Image, Name     string
		Args            []string
		SecurityContext struct {
			Privileged, ReadOnlyRootFilesystem bool
			Capabilities                       struct{ Add, Drop []string }
		}
		VolumeMounts []struct{ Name, MountPath string }
		Resources    struct{ Limits, Requests map[string]string }
	}
	Volumes []struct {
		Name     string
		HostPath struct{ Path string }
	}
	selector, labels map[string]string
}

// podSpec is that of a pod or of a DaemonSet's template; nil where there is none.
func podSpec(t *testing.T, object map[string]any) *pod {
	t.Helper()
	text, err := json.Marshal(object)
	if err != nil {
		t.Fatal(err)
	}
	var of struct {
		Spec struct {
			pod
			Selector struct{ MatchLabels map[string]string }
			Template struct {
				Metadata struct{ Labels map[string]string }
				Spec     pod
			}
		}
	}
	switch kind := object["kind"]; kind {
	case "Pod":
		var of struct{ Spec pod }
		if err := json.Unmarshal(text, &of); err != nil {
			t.Fatal(err)
		}
		return &of.Spec
	case "DaemonSet":
		if err := json.Unmarshal(text, &of); err != nil {
			t.Fatal(err)
		}
		of.Spec.Template.Spec.selector, of.Spec.Template.Spec.labels = of.Spec.Selector.MatchLabels, of.Spec.Template.Metadata.Labels
		return &of.Spec.Template.Spec
	}
	return nil
}

// check looks at what no schema says.
func (p *pod) check(t *testing.T) {
	t.Helper()
	for name, value := range p.selector {
		if p.labels[name] != value {
			t.Errorf("the selector's %s is %q, the pod's %q", name, value, p.labels[name])
		}
	}
	c := p.Containers[0]
	for _, mount := range c.VolumeMounts {
		found := false
		for _, volume := range p.Volumes {
			found = found || volume.Name == mount.Name
		}
		if !found {
			t.Errorf("no volume %s", mount.Name)
		}
	}
	if !p.HostPID || !c.SecurityContext.ReadOnlyRootFilesystem || c.Resources.Limits["memory"] == "" {
		t.Errorf("hostPID, a read-only root and a limit are wanted: %+v", p)
	}
}

// schemas are the OpenAPI documents of a release of Kubernetes.
type schemas struct {
	dir      string
	compiled map[string]*jsonschema.Schema
}

func newSchemas(t *testing.T) *schemas {
	t.Helper()
	out, err := exec.Command("go", "mod", "download", "-json", kubernetes).Output()
	var module struct{ Dir, Error string }
	if err := json.Unmarshal(out, &module); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err != nil {
		t.Skipf("the schemas of %s are not here: %s", kubernetes, module.Error)
	}
	return &schemas{filepath.Join(module.Dir, "api/openapi-spec/v3"), map[string]*jsonschema.Schema{}}
}

// validate tells what is wrong with an object, as an API server would that is told
// to be strict (kubectl's --validate=strict, its default).
func (s *schemas) validate(object map[string]any) error {
	version, kind := fmt.Sprint(object["apiVersion"]), fmt.Sprint(object["kind"])
	schema := s.compiled[version+" "+kind]
	if schema == nil {
		var err error
		if schema, err = s.compile(version, kind); err != nil {
			return err
		}
		s.compiled[version+" "+kind] = schema
	}
	// As JSON has it: kustomize knows integers.
	text, err := json.Marshal(object)
	if err != nil {
		return err
	}
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		return err
	}
	return schema.Validate(value)
}

func (s *schemas) compile(version, kind string) (*jsonschema.Schema, error) {
	group, number, named := strings.Cut(version, "/")
	file := "apis__" + group + "__" + number + "_openapi.json"
	if !named {
		group, number, file = "", version, "api__"+version+"_openapi.json"
	}
	text, err := os.ReadFile(filepath.Join(s.dir, file))
	if err != nil {
		return nil, fmt.Errorf("no API %s: %w", version, err)
	}
	document, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	closeObjects(document)
	for name, schema := range document.(map[string]any)["components"].(map[string]any)["schemas"].(map[string]any) {
		kinds, _ := schema.(map[string]any)["x-kubernetes-group-version-kind"].([]any)
		for _, of := range kinds {
			of := of.(map[string]any)
			if of["group"] != group || of["version"] != number || of["kind"] != kind {
				continue
			}
			c := jsonschema.NewCompiler()
			c.DefaultDraft(jsonschema.Draft4) // as OpenAPI 3.0 is
			if err := c.AddResource(file, document); err != nil {
				return nil, fmt.Errorf("%s: %w", file, err)
			}
			return c.Compile(file + "#/components/schemas/" + name)
		}
	}
	return nil, fmt.Errorf("%s has no kind %s", version, kind)
}

// closeObjects forbids fields that no schema names, as a strict API server does.
func closeObjects(schema any) {
	switch schema := schema.(type) {
	case map[string]any:
		if _, ok := schema["properties"].(map[string]any); ok {
			schema["additionalProperties"] = false
		}
		for _, of := range schema {
			closeObjects(of)
		}
	case []any:
		for _, of := range schema {
			closeObjects(of)
		}
	}
}
