package names

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// dockerSocket is where Docker's engine listens.
func dockerSocket() socket {
	if s := fromEnv("DOCKER_HOST"); s != nil {
		return s
	}
	return onHost("/run/docker.sock", "/var/run/docker.sock")
}

// A dockerClient speaks the API of Docker's engine.
type dockerClient struct{ http http.Client }

func newDocker(s socket) *dockerClient {
	return &dockerClient{http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return s.dial(ctx) },
	}}}
}

func (d *dockerClient) find(ctx context.Context, id string) (Name, bool, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	body, status, err := d.get(ctx, "/containers/"+url.PathEscape(id)+"/json")
	if err != nil {
		return Name{}, false, err
	}
	defer body.Close()
	if status != http.StatusOK {
		return d.recall(ctx, id)
	}
	var container struct {
		ID, Name string
		Config   struct{ Labels map[string]string }
	}
	if err := json.NewDecoder(io.LimitReader(body, maxAnswer)).Decode(&container); err != nil {
		return Name{}, false, fmt.Errorf("read what docker says of a container: %w", err)
	}
	return dockerName(container.Name, container.Config.Labels), container.ID == id, nil
}

// recall returns the name of a container that is gone. The engine keeps its last
// events, 256 at most; the watch may have the rest, but later.
func (d *dockerClient) recall(ctx context.Context, id string) (Name, bool, error) {
	now := time.Now()
	events, status, err := d.get(ctx, fmt.Sprintf("/events?since=0&until=%d.%09d&filters=%s", now.Unix(), now.Nanosecond(),
		url.QueryEscape(`{"type":["container"],"container":["`+id+`"]}`)))
	if err != nil {
		return Name{}, false, err
	}
	defer events.Close()
	if status != http.StatusOK {
		return Name{}, false, nil
	}
	var e dockerEvent
	if err := json.NewDecoder(io.LimitReader(events, maxAnswer)).Decode(&e); err != nil || e.Actor.ID != id {
		return Name{}, false, nil // it has none
	}
	return dockerName(e.Actor.Attributes["name"], e.Actor.Attributes), true, nil
}

// A dockerEvent is what happened to a container.
type dockerEvent struct {
	Actor struct {
		ID         string
		Attributes map[string]string // the labels, and "name"
	}
}

func (d *dockerClient) watch(ctx context.Context, found func(id string, name Name)) error {
	events, status, err := d.get(ctx, "/events?filters="+url.QueryEscape(`{"type":["container"],"event":["create","start","rename"]}`))
	if err != nil {
		return err
	}
	defer events.Close()
	if status != http.StatusOK {
		return fmt.Errorf("watch docker's containers: %s", http.StatusText(status))
	}
	// After the events, so that none is missed between the two.
	if err := d.list(ctx, found); err != nil {
		return err
	}
	for decoder := json.NewDecoder(events); ; {
		var e dockerEvent
		if err := decoder.Decode(&e); err != nil {
			return fmt.Errorf("watch docker's containers: %w", err)
		}
		found(e.Actor.ID, dockerName(e.Actor.Attributes["name"], e.Actor.Attributes))
	}
}

// list tells all containers, those that are stopped as well.
func (d *dockerClient) list(ctx context.Context, found func(id string, name Name)) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	body, status, err := d.get(ctx, "/containers/json?all=1")
	if err != nil {
		return err
	}
	defer body.Close()
	if status != http.StatusOK {
		return fmt.Errorf("list docker's containers: %s", http.StatusText(status))
	}
	var containers []struct {
		ID     string
		Names  []string // those that others link to it by have a second slash
		Labels map[string]string
	}
	if err := json.NewDecoder(io.LimitReader(body, maxAnswer)).Decode(&containers); err != nil {
		return fmt.Errorf("list docker's containers: %w", err)
	}
	for _, container := range containers {
		for _, name := range container.Names {
			if !strings.Contains(name[min(1, len(name)):], "/") {
				found(container.ID, dockerName(name, container.Labels))
			}
		}
	}
	return nil
}

// get asks for a path of the API, in the engine's own version.
func (d *dockerClient) get(ctx context.Context, path string) (io.ReadCloser, int, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://docker"+path, nil)
	if err != nil {
		return nil, 0, fmt.Errorf("ask docker: %w", err)
	}
	response, err := d.http.Do(request)
	if err != nil {
		return nil, 0, fmt.Errorf("ask docker: %w", err)
	}
	return response.Body, response.StatusCode, nil
}

// dockerName is the name of a container and, where the kubelet runs it through
// cri-dockerd, that of its pod, which labels tell.
func dockerName(name string, labels map[string]string) Name {
	n := Name{
		Runtime: "docker", Container: strings.TrimPrefix(name, "/"),
		Pod:       labels["io.kubernetes.pod.name"],
		Namespace: labels["io.kubernetes.pod.namespace"], PodUID: labels["io.kubernetes.pod.uid"],
	}
	if n.Pod != "" {
		n.Container = labels["io.kubernetes.container.name"]
	}
	return n
}
