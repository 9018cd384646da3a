package event

import "strings"

// Cgroup is a control group, and the container and pod that it is of. What is not
// known is "". It is never changed once an Owner points to it.
type Cgroup struct {
	// Path is from the root of its hierarchy.
	Path string
	// Container is the id of the innermost container, 64 hexadecimal digits,
	// and Runtime who runs it: containerd, cri-o, docker or podman.
	Container, Runtime string
	// PodUID is the uid that the kubelet knows the pod by. Of a static pod it
	// is the hash of its configuration, and not the API's.
	PodUID string
	// Name is the container's, Pod and Namespace are its pod's, and Node is the
	// Kubernetes node's that this machine is.
	Name, Pod, Namespace, Node string
}

// String names the container, as short as tells it from its neighbours: NAME@POD,
// NAME, or the beginning of its id; "" where there is none.
func (c *Cgroup) String() string {
	switch {
	case c == nil || c.Container == "":
		return ""
	case c.Name == "":
		return c.Container[:min(len(c.Container), 12)]
	case c.Pod == "":
		return c.Name
	}
	return c.Name + "@" + c.Pod
}

// LongString names it in full: NAMESPACE/POD/NAME, NAME, its id, or its path.
func (c *Cgroup) LongString() string {
	switch {
	case c == nil:
		return ""
	case c.Name != "" && c.Pod != "":
		return strings.TrimPrefix(c.Namespace+"/", "/") + c.Pod + "/" + c.Name
	case c.Name != "":
		return c.Name
	case c.Container != "" && c.PodUID != "":
		return "pod " + c.PodUID + ", container " + c.Container
	case c.Container != "":
		return "container " + c.Container
	}
	return ""
}
